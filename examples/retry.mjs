// Send an event, and retry it under the same id and timestamp, which lets consumers recognize a duplicate.
export async function send(url, event, attempts = 5) {
  const body = JSON.stringify({ event_id: crypto.randomUUID(), timestamp: new Date().toISOString(), ...event });
  for (let attempt = 1; ; attempt++) {
    const request = { method: "POST", headers: { "Content-Type": "application/json" }, body };
    const answer = await fetch(`${url}/events/ingest`, request).catch((error) => ({ status: 599, error }));
    if (answer.status === 202) return answer.json();
    if (attempt === attempts || (answer.status < 500 && answer.status !== 408 && answer.status !== 429))
      throw answer.error ?? new Error(await answer.text());
    const seconds = Math.min(Number(answer.headers?.get("Retry-After")) || 2 ** attempt / 4, 30);
    await new Promise((resolve) => setTimeout(resolve, seconds * (1 + Math.random() / 2) * 1000));
  }
}
