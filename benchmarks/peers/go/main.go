// Command go is a service on net/http and Google's client for Go, with ordering: `./peer PORT`.
//
// Build it with Debian's packages golang-go and golang-google-cloud-dev:
//
//	GO111MODULE=off GOPATH=/usr/share/gocode go build -o peer main.go
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
	"unicode/utf8"

	"cloud.google.com/go/pubsub"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

const (
	userActions    = "pulsecart.user-actions"
	commerceEvents = "pulsecart.commerce-events"
	systemEvents   = "pulsecart.system-events"

	maxBody        = 10_000_000
	maxText        = 1024
	publishTimeout = 10 * time.Second
)

// kind is where events of a type go, and which of the optional fields the type has.
type kind struct {
	topic   string
	session bool
	order   bool
}

var kinds = map[string]kind{
	"cart.item_added":           {topic: userActions, session: true},
	"product.viewed":            {topic: userActions, session: true},
	"search.performed":          {topic: userActions, session: true},
	"order.placed":              {topic: commerceEvents, order: true},
	"cart.abandoned":            {topic: commerceEvents, session: true},
	"payment.failed":            {topic: commerceEvents, order: true},
	"message.personalized_send": {topic: systemEvents},
	"inventory.low_stock_alert": {topic: systemEvents},
}

type event struct {
	EventType string          `json:"event_type"`
	EventID   *string         `json:"event_id"`
	Timestamp *time.Time      `json:"timestamp"`
	UserID    *string         `json:"user_id"`
	SessionID *string         `json:"session_id,omitempty"`
	OrderID   *string         `json:"order_id,omitempty"`
	Payload   json.RawMessage `json:"payload"`
}

type accepted struct {
	Status    string `json:"status,omitempty"`
	EventID   string `json:"event_id"`
	MessageID string `json:"message_id"`
}

type allAccepted struct {
	Status  string     `json:"status"`
	Results []accepted `json:"results"`
}

// decode reads an event, validates it by its type, and completes it.
func decode(body []byte) (*event, kind, error) {
	var e event
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&e); err != nil {
		return nil, kind{}, err
	}
	if _, err := decoder.Token(); err != io.EOF {
		return nil, kind{}, errors.New("more than one JSON value")
	}
	k, known := kinds[e.EventType]
	if !known {
		return nil, kind{}, fmt.Errorf("event_type: %q is unknown", e.EventType)
	}
	if e.EventID == nil {
		var id [16]byte
		if _, err := rand.Read(id[:]); err != nil {
			return nil, kind{}, err
		}
		text := "evt_" + hex.EncodeToString(id[:])
		e.EventID = &text
	}
	if e.Timestamp == nil {
		now := time.Now().UTC()
		e.Timestamp = &now
	}
	for _, field := range []struct {
		name    string
		value   *string
		belongs bool
	}{
		{"event_id", e.EventID, true},
		{"user_id", e.UserID, true},
		{"session_id", e.SessionID, k.session},
		{"order_id", e.OrderID, k.order},
	} {
		switch {
		case !field.belongs && field.value != nil:
			return nil, kind{}, fmt.Errorf("%s: no field of this type", field.name)
		case field.belongs && field.value == nil:
			return nil, kind{}, fmt.Errorf("%s: required", field.name)
		case field.belongs && (*field.value == "" || utf8.RuneCountInString(*field.value) > maxText):
			return nil, kind{}, fmt.Errorf("%s: 1 to %d characters", field.name, maxText)
		}
	}
	if len(e.Payload) == 0 || e.Payload[0] != '{' {
		return nil, kind{}, errors.New("payload: an object is required")
	}
	return &e, k, nil
}

// read returns the body of a POST request, or answers why it cannot.
func read(w http.ResponseWriter, r *http.Request) ([]byte, bool) {
	if r.Method != http.MethodPost {
		http.Error(w, "use POST", http.StatusMethodNotAllowed)
		return nil, false
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
		return nil, false
	}
	return body, true
}

// publish hands an event to the client, which returns at once.
func publish(ctx context.Context, topics map[string]*pubsub.Topic, e *event, k kind) (*pubsub.PublishResult, error) {
	data, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	return topics[k.topic].Publish(ctx, &pubsub.Message{
		Data:        data,
		OrderingKey: *e.UserID,
		Attributes:  map[string]string{"event_type": e.EventType, "event_id": *e.EventID},
	}), nil
}

// answer says 202.
func answer(w http.ResponseWriter, document interface{}) {
	text, err := json.Marshal(document)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(http.StatusAccepted)
	w.Write(text)
}

// ingest publishes an event, and answers when the broker has confirmed it.
func ingest(topics map[string]*pubsub.Topic) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, ok := read(w, r)
		if !ok {
			return
		}
		e, k, err := decode(body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusUnprocessableEntity)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), publishTimeout)
		defer cancel()
		published, err := publish(ctx, topics, e, k)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		messageID, err := published.Get(ctx)
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		answer(w, accepted{"accepted", *e.EventID, messageID})
	}
}

// batch publishes the events of an array, if all are valid, and answers when the broker has confirmed all.
func batch(topics map[string]*pubsub.Topic) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, ok := read(w, r)
		if !ok {
			return
		}
		var elements []json.RawMessage
		if err := json.Unmarshal(body, &elements); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		events, kinds := make([]*event, len(elements)), make([]kind, len(elements))
		for i, element := range elements {
			var err error
			if events[i], kinds[i], err = decode(element); err != nil {
				http.Error(w, fmt.Sprintf("/%d: %v", i, err), http.StatusUnprocessableEntity)
				return
			}
		}
		ctx, cancel := context.WithTimeout(r.Context(), publishTimeout)
		defer cancel()
		published := make([]*pubsub.PublishResult, len(events))
		for i, e := range events {
			var err error
			if published[i], err = publish(ctx, topics, e, kinds[i]); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
		}
		all := allAccepted{"accepted", make([]accepted, len(events))}
		for i, e := range events {
			messageID, err := published[i].Get(ctx)
			if err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
			all.Results[i] = accepted{EventID: *e.EventID, MessageID: messageID}
		}
		answer(w, all)
	}
}

// endpoint returns the options for a server at PUBSUB_ENDPOINT whose certificate is signed by a root in PUBSUB_ROOTS, a
// PEM file. Without PUBSUB_ENDPOINT the client reads PUBSUB_EMULATOR_HOST, as it always does.
func endpoint() ([]option.ClientOption, error) {
	address := os.Getenv("PUBSUB_ENDPOINT")
	if address == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(os.Getenv("PUBSUB_ROOTS"))
	if err != nil {
		return nil, fmt.Errorf("PUBSUB_ROOTS: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, errors.New("PUBSUB_ROOTS: no certificate")
	}
	secure := credentials.NewTLS(&tls.Config{RootCAs: roots})
	return []option.ClientOption{
		option.WithEndpoint(address),
		option.WithoutAuthentication(),
		option.WithGRPCDialOption(grpc.WithTransportCredentials(secure)),
	}, nil
}

func main() {
	options, err := endpoint()
	if err != nil {
		log.Fatal(err)
	}
	client, err := pubsub.NewClient(context.Background(), "pulsecart-bench", options...)
	if err != nil {
		log.Fatal(err)
	}
	topics := map[string]*pubsub.Topic{}
	for _, name := range []string{userActions, commerceEvents, systemEvents} {
		topics[name] = client.Topic(name)
		topics[name].EnableMessageOrdering = true
	}
	http.HandleFunc("/events/ingest", ingest(topics))
	http.HandleFunc("/events/batch", batch(topics))
	server := &http.Server{Addr: "127.0.0.1:" + os.Args[1]}
	stopped := make(chan struct{})
	go func() {
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
		<-signals
		if err := server.Shutdown(context.Background()); err != nil {
			log.Print(err)
		}
		close(stopped)
	}()
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		log.Fatal(err)
	}
	<-stopped
	for _, topic := range topics {
		topic.Stop()
	}
	if err := client.Close(); err != nil {
		log.Print(err)
	}
}
