output "url" {
  description = "The address of the service."
  value       = google_cloud_run_v2_service.pulsecart.uri
}

output "service_account" {
  description = "The account that publishes."
  value       = google_service_account.pulsecart.email
}
