// Fastify and Google's client for Node: `node server.js PORT`.

import { randomUUID } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { PubSub } from '@google-cloud/pubsub'
import Fastify from 'fastify'
import { grpc } from 'google-gax'

const USER_ACTIONS = 'pulsecart.user-actions'
const COMMERCE_EVENTS = 'pulsecart.commerce-events'
const SYSTEM_EVENTS = 'pulsecart.system-events'

const types = {
  'cart.item_added': { topic: USER_ACTIONS, own: 'session_id' },
  'product.viewed': { topic: USER_ACTIONS, own: 'session_id' },
  'search.performed': { topic: USER_ACTIONS, own: 'session_id' },
  'order.placed': { topic: COMMERCE_EVENTS, own: 'order_id' },
  'cart.abandoned': { topic: COMMERCE_EVENTS, own: 'session_id' },
  'payment.failed': { topic: COMMERCE_EVENTS, own: 'order_id' },
  'message.personalized_send': { topic: SYSTEM_EVENTS },
  'inventory.low_stock_alert': { topic: SYSTEM_EVENTS },
}

const text = { type: 'string', minLength: 1, maxLength: 1024 }

const schemaOf = ([eventType, { own }]) => ({
  type: 'object',
  additionalProperties: false,
  required: ['event_type', 'user_id', 'payload', ...(own ? [own] : [])],
  properties: {
    event_type: { const: eventType },
    event_id: text,
    timestamp: { type: 'string', format: 'date-time' },
    user_id: text,
    payload: { type: 'object' },
    ...(own ? { [own]: text } : {}),
  },
})

const body = {
  type: 'object',
  required: ['event_type'],
  discriminator: { propertyName: 'event_type' },
  oneOf: Object.entries(types).map(schemaOf),
}

const accepted = {
  type: 'object',
  properties: { status: { type: 'string' }, event_id: { type: 'string' }, message_id: { type: 'string' } },
}

const allAccepted = {
  type: 'object',
  properties: { status: { type: 'string' }, results: { type: 'array', items: accepted } },
}

// With an endpoint of its own, the client takes every server for an emulator unless told otherwise, and then uses no TLS.
const endpoint = process.env.PUBSUB_ENDPOINT && {
  apiEndpoint: process.env.PUBSUB_ENDPOINT,
  emulatorMode: false,
  sslCreds: grpc.credentials.createSsl(readFileSync(process.env.PUBSUB_ROOTS)),
}
const pubsub = new PubSub({ projectId: 'pulsecart-bench', ...endpoint })
const topics = Object.fromEntries(
  [USER_ACTIONS, COMMERCE_EVENTS, SYSTEM_EVENTS].map((name) => [name, pubsub.topic(name, { messageOrdering: true })]),
)

const app = Fastify({
  ajv: { customOptions: { discriminator: true, coerceTypes: false, removeAdditional: false } },
})

const publish = async (event) => {
  event.event_id ??= `evt_${randomUUID()}`
  event.timestamp ??= new Date().toISOString()
  const { event_type, event_id } = event
  const messageId = await topics[types[event_type].topic].publishMessage({
    json: event,
    orderingKey: event.user_id,
    attributes: { event_type, event_id },
  })
  return { status: 'accepted', event_id, message_id: messageId }
}

app.post('/events/ingest', { schema: { body, response: { 202: accepted } } }, async (request, reply) => {
  const answer = await publish(request.body)
  reply.code(202)
  return answer
})

const bodies = { type: 'array', items: body }
const bodyLimit = 10_485_760

app.post('/events/batch', { bodyLimit, schema: { body: bodies, response: { 202: allAccepted } } }, async (request, reply) => {
  const results = await Promise.all(request.body.map(publish))
  reply.code(202)
  return { status: 'accepted', results }
})

for (const signal of ['SIGTERM', 'SIGINT']) {
  process.once(signal, () => app.close())
}
await app.listen({ port: Number(process.argv[2]), host: '127.0.0.1' })
