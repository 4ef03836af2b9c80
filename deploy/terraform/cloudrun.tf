resource "google_secret_manager_secret_iam_member" "reads_sources" {
  secret_id = var.sources_secret
  role      = "roles/secretmanager.secretAccessor"
  member    = google_service_account.pulsecart.member
}

resource "google_cloud_run_v2_service" "pulsecart" {
  name     = "pulsecart"
  location = var.region
  ingress  = "INGRESS_TRAFFIC_INTERNAL_ONLY"

  template {
    service_account                  = google_service_account.pulsecart.email
    max_instance_request_concurrency = 250
    timeout                          = "60s"

    scaling {
      min_instance_count = var.min_instances
      max_instance_count = var.max_instances
    }

    containers {
      image = var.image

      ports {
        container_port = 8080
      }

      env {
        name  = "ENVIRONMENT"
        value = "prod"
      }
      env {
        name  = "PULSECART_TRANSPORT"
        value = "pubsub"
      }
      env {
        name  = "GCP_PROJECT_ID"
        value = var.project
      }
      env {
        name  = "PULSECART_ENDPOINT"
        value = "${var.region}-pubsub.googleapis.com:443"
      }
      env {
        name  = "PULSECART_TOPICS"
        value = join(",", [for topic, name in var.topics : "${topic}=${name}"])
      }
      env {
        name  = "PULSECART_AUTH"
        value = "keys"
      }
      env {
        name  = "PULSECART_SOURCES"
        value = "/etc/pulsecart/sources.toml"
      }

      resources {
        # Tokens are renewed, logs written and traces exported between requests, too.
        cpu_idle          = false
        startup_cpu_boost = true
        limits = {
          cpu    = "1"
          memory = "512Mi"
        }
      }

      startup_probe {
        period_seconds    = 1
        failure_threshold = 30
        http_get {
          path = "/readyz?exclude=broker"
        }
      }

      liveness_probe {
        period_seconds    = 10
        failure_threshold = 3
        http_get {
          path = "/livez"
        }
      }

      volume_mounts {
        name       = "sources"
        mount_path = "/etc/pulsecart"
      }
    }

    volumes {
      name = "sources"
      secret {
        secret = var.sources_secret
        items {
          version = "latest"
          path    = "sources.toml"
        }
      }
    }
  }

  depends_on = [
    google_pubsub_topic_iam_member.publishes,
    google_secret_manager_secret_iam_member.reads_sources,
  ]
}

resource "google_cloud_run_v2_service_iam_member" "invokes" {
  for_each = toset(var.invokers)
  name     = google_cloud_run_v2_service.pulsecart.name
  location = var.region
  role     = "roles/run.invoker"
  member   = each.value
}
