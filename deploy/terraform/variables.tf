variable "project" {
  description = "The id of the Google Cloud project."
  type        = string
}

variable "region" {
  description = "The region of the service, and of the Pub/Sub endpoint. Order per user holds within one region."
  type        = string
  default     = "us-central1"
}

variable "image" {
  description = "The image of deploy/Dockerfile, by its digest."
  type        = string
}

variable "topics" {
  description = "What each topic of the catalog is called in the project."
  type        = map(string)
  default = {
    "pulsecart.commerce-events" = "pulsecart.commerce-events"
    "pulsecart.system-events"   = "pulsecart.system-events"
    "pulsecart.user-actions"    = "pulsecart.user-actions"
  }
}

variable "subscriptions" {
  description = "The subscriptions, by name: a topic of the catalog, and optionally a dead-letter topic and a filter."
  type = map(object({
    topic                 = string
    dead_letter_topic     = optional(string)
    max_delivery_attempts = optional(number, 5)
    filter                = optional(string)
  }))
  default = {}
}

variable "sources_secret" {
  description = "The id of the secret in Secret Manager that has the sources file."
  type        = string
  default     = "pulsecart-sources"
}

variable "invokers" {
  description = "Who may call the service, such as serviceAccount:checkout@shop.iam.gserviceaccount.com."
  type        = list(string)
  default     = []
}

variable "min_instances" {
  description = "The number of instances that are always there."
  type        = number
  default     = 2
}

variable "max_instances" {
  description = "The most instances."
  type        = number
  default     = 20
}
