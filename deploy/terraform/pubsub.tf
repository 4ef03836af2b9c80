data "google_project" "this" {
  project_id = var.project
}

locals {
  # Pub/Sub itself forwards dead letters, with this account.
  service_agent = "serviceAccount:service-${data.google_project.this.number}@gcp-sa-pubsub.iam.gserviceaccount.com"

  with_dead_letters  = { for name, subscription in var.subscriptions : name => subscription if subscription.dead_letter_topic != null }
  dead_letter_topics = toset([for subscription in local.with_dead_letters : subscription.dead_letter_topic])
}

resource "google_pubsub_topic" "events" {
  for_each = var.topics
  name     = each.value

  # Order per user holds within one region.
  message_storage_policy {
    allowed_persistence_regions = [var.region]
    enforce_in_transit          = true
  }

  lifecycle {
    prevent_destroy = true
  }
}

resource "google_pubsub_topic" "dead_letters" {
  for_each = local.dead_letter_topics
  name     = each.value

  lifecycle {
    prevent_destroy = true
  }
}

resource "google_pubsub_subscription" "this" {
  for_each = var.subscriptions
  name     = each.key
  topic    = google_pubsub_topic.events[each.value.topic].id
  filter   = each.value.filter

  enable_message_ordering = true

  dynamic "dead_letter_policy" {
    for_each = each.value.dead_letter_topic == null ? [] : [each.value]
    content {
      dead_letter_topic     = google_pubsub_topic.dead_letters[dead_letter_policy.value.dead_letter_topic].id
      max_delivery_attempts = dead_letter_policy.value.max_delivery_attempts
    }
  }

  expiration_policy {
    ttl = ""
  }
}

resource "google_pubsub_topic_iam_member" "forwards_dead_letters" {
  for_each = local.dead_letter_topics
  topic    = google_pubsub_topic.dead_letters[each.value].id
  role     = "roles/pubsub.publisher"
  member   = local.service_agent
}

resource "google_pubsub_subscription_iam_member" "forwards_dead_letters" {
  for_each     = local.with_dead_letters
  subscription = google_pubsub_subscription.this[each.key].id
  role         = "roles/pubsub.subscriber"
  member       = local.service_agent
}

resource "google_service_account" "pulsecart" {
  account_id   = "pulsecart"
  display_name = "pulsecart publishes events"
}

# Publishing is all that the service may do, and only to these topics.
resource "google_pubsub_topic_iam_member" "publishes" {
  for_each = var.topics
  topic    = google_pubsub_topic.events[each.key].id
  role     = "roles/pubsub.publisher"
  member   = google_service_account.pulsecart.member
}
