//! What the API is, for programs: an OpenAPI 3.1 document, made of one table of operations and of the codes that there are. A test holds it against
//! the router.

use std::sync::LazyLock;

use hyper::{Request, Response};
use serde_json::{Map, Value, json};

use super::problem::{CODES, MEDIA_TYPE};
use super::routes::{Content, tagged};

static DOCUMENT: LazyLock<String> = LazyLock::new(|| format!("{:#}\n", document()));

/// `GET /openapi.json`
pub fn get<B>(request: &Request<B>) -> Response<Content> {
    tagged(request, "application/json", DOCUMENT.clone())
}

/// The document.
#[must_use]
pub fn document() -> Value {
    let mut paths: Map<String, Value> = Map::new();
    for operation in operations() {
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method] = operation.described();
    }
    let codes: Vec<&str> = CODES.iter().map(|code| code.name).collect();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Sundown",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "A scheduler for ephemeral agents: each is one container with a time to live, and ends on time and exactly once.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": {
                "Agent": agent(),
                "Event": event(),
                "Submission": submission(),
                "Extension": {
                    "type": "object", "additionalProperties": false, "required": ["ttl"], "properties": {"ttl": duration()},
                },
                "Problem": {
                    "type": "object", "required": ["type", "title", "status", "code", "detail", "hint"],
                    "properties": {
                        "type": {"type": "string"}, "title": {"type": "string"}, "status": {"type": "integer"},
                        "code": {"type": "string", "enum": codes, "description": "Stable: programs may depend on it."},
                        "detail": {"type": "string"}, "hint": {"type": "string", "description": "What to do about it."},
                        "missing": {"type": "array", "items": {"type": "string"}},
                    },
                },
            },
            "responses": {
                "Problem": {"description": "What went wrong, and what to do about it.", "content": {MEDIA_TYPE: {"schema": schema("Problem")}}},
            },
        },
    })
}

/// One method of one path.
struct Operation {
    method: &'static str,
    path: &'static str,
    id: &'static str,
    summary: &'static str,
    parameters: Vec<Value>,
    body: Option<&'static str>,
    /// Statuses of success, with what they say.
    answers: Vec<(u16, &'static str, Value)>,
    refusals: &'static [u16],
}

impl Operation {
    fn described(&self) -> Value {
        let mut responses: Map<String, Value> = self
            .answers
            .iter()
            .map(|(status, what, content)| (status.to_string(), json!({"description": what, "content": content})))
            .collect();
        for status in self.refusals.iter().chain(&[503]) {
            responses.insert(status.to_string(), json!({"$ref": "#/components/responses/Problem"}));
        }
        let mut described = json!({
            "operationId": self.id, "summary": self.summary, "parameters": self.parameters, "responses": responses,
        });
        if let Some(name) = self.body {
            described["requestBody"] = json!({"required": true, "content": {"application/json": {"schema": schema(name)}}});
        }
        described
    }
}

fn operations() -> Vec<Operation> {
    let operation = |method, path, id, summary| Operation {
        method,
        path,
        id,
        summary,
        parameters: Vec::new(),
        body: None,
        answers: Vec::new(),
        refusals: &[400],
    };
    let one = || parameter("id", "path", true, "The id as POST /agents returned it.", json!({"type": "string", "format": "uuid"}));
    let label = |required| {
        let mut label = parameter(
            "label",
            "query",
            required,
            "Those that carry this label, as key=value; may be repeated.",
            json!({"type": "array", "minItems": i32::from(required), "items": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_./-]{0,62}=[A-Za-z0-9_.-]{0,255}$"}, "maxItems": 1}),
        );
        label["explode"] = json!(true);
        label
    };
    let tagged = || {
        parameter(
            "If-None-Match",
            "header",
            false,
            "The ETag of an answer that is there already.",
            json!({"type": "string", "pattern": "^\"[0-9a-f]{32}\"$"}),
        )
    };
    let unchanged = || (304, "It says what that ETag says.", json!({}));
    vec![
        Operation {
            parameters: vec![parameter(
                "Idempotency-Key",
                "header",
                false,
                "The same key and body again within a day: the same agent.",
                json!({"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"}),
            )],
            body: Some("Submission"),
            answers: vec![(201, "Accepted.", of("Agent")), (200, "Accepted before, with this key.", of("Agent"))],
            refusals: &[400, 403, 408, 409, 413],
            ..operation("post", "/agents", "submit", "Submits an agent.")
        },
        Operation {
            parameters: vec![
                parameter("state", "query", false, "Those in this state.", states()),
                label(false),
                parameter(
                    "limit",
                    "query",
                    false,
                    "Most in one answer.",
                    json!({"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}),
                ),
                parameter("cursor", "query", false, "The `next` of an earlier page.", json!({"type": "string", "format": "uuid"})),
                tagged(),
            ],
            answers: vec![
                (
                    200,
                    "A page, newest first.",
                    content(json!({
                        "type": "object", "required": ["agents", "next"],
                        "properties": {"agents": {"type": "array", "items": schema("Agent")}, "next": nullable(json!({"type": "string", "format": "uuid"}))},
                    })),
                ),
                unchanged(),
            ],
            ..operation("get", "/agents", "list", "Lists agents, alive and ended.")
        },
        Operation {
            parameters: vec![label(true), parameter("dry_run", "query", false, "Only counts them.", json!({"type": "boolean"}))],
            answers: vec![(202, "So many are being ended.", counted()), (200, "So many would be ended.", counted())],
            refusals: &[400, 403],
            ..operation("delete", "/agents", "terminateLabelled", "Ends every agent that carries these labels.")
        },
        Operation {
            parameters: vec![
                one(),
                parameter(
                    "wait",
                    "query",
                    false,
                    "Answers once it has ended, or after so long, at most 60 s.",
                    json!({"type": "string", "pattern": "^([0-9]{1,3}ms|[0-9]s)$"}),
                ),
                tagged(),
            ],
            answers: vec![(200, "The agent.", of("Agent")), unchanged()],
            refusals: &[400, 404],
            ..operation("get", "/agents/{id}", "get", "One agent.")
        },
        Operation {
            parameters: vec![one()],
            answers: vec![(202, "It is being ended.", of("Agent")), (200, "It has ended.", of("Agent"))],
            refusals: &[400, 403, 404],
            ..operation("delete", "/agents/{id}", "terminate", "Ends an agent: a signal, its grace, SIGKILL.")
        },
        Operation {
            parameters: vec![one()],
            body: Some("Extension"),
            answers: vec![(200, "It now ends that long from now.", of("Agent"))],
            refusals: &[400, 403, 404, 408, 409, 413],
            ..operation("patch", "/agents/{id}", "extend", "Moves an agent's deadline to now + ttl.")
        },
        Operation {
            parameters: vec![
                one(),
                parameter("follow", "query", false, "Goes on until it has ended.", json!({"type": "boolean"})),
                parameter(
                    "tail",
                    "query",
                    false,
                    "The last so many lines.",
                    json!({"type": "integer", "minimum": 0, "maximum": 4_294_967_295_u32}),
                ),
            ],
            answers: vec![(200, "What it wrote, as it is.", json!({"text/plain; charset=utf-8": {"schema": {"type": "string"}}}))],
            refusals: &[400, 404, 409],
            ..operation("get", "/agents/{id}/logs", "logs", "The output of an agent; after its end, the last 64 KiB of it.")
        },
        Operation {
            parameters: vec![one(), tagged()],
            answers: vec![(200, "From its submission on.", listed("events", schema("Event"))), unchanged()],
            refusals: &[400, 404],
            ..operation("get", "/agents/{id}/events", "story", "Everything that happened to an agent.")
        },
        Operation {
            parameters: vec![
                parameter("agent", "query", false, "Of this one only.", json!({"type": "string", "format": "uuid"})),
                parameter("after", "query", false, "Those after the event with this id; 0.0: all that are kept.", place()),
                parameter("Last-Event-ID", "header", false, "As `after`, and goes before it.", place()),
            ],
            answers: vec![(
                200,
                "Server-Sent Events, each an Event; without end.",
                json!({"text/event-stream": {"schema": {"type": "string"}}}),
            )],
            ..operation("get", "/events", "events", "Every transition as it happens.")
        },
        Operation {
            parameters: vec![tagged()],
            answers: vec![(200, "As the view sundown.hosts.", listed("hosts", json!({"type": "object"}))), unchanged()],
            ..operation("get", "/hosts", "hosts", "The Docker hosts.")
        },
        Operation {
            parameters: vec![tagged()],
            answers: vec![(200, "As the view sundown.replicas.", listed("replicas", json!({"type": "object"}))), unchanged()],
            ..operation("get", "/replicas", "replicas", "The replicas of the last hour.")
        },
        Operation {
            answers: vec![(200, "This document.", content(json!({"type": "object"}))), unchanged()],
            parameters: vec![tagged()],
            refusals: &[],
            ..operation("get", "/openapi.json", "openapi", "What this API is.")
        },
        Operation {
            answers: vec![(
                200,
                "It is alive.",
                content(json!({"type": "object", "required": ["status"], "properties": {"status": {"const": "alive"}}})),
            )],
            refusals: &[],
            ..operation("get", "/healthz", "healthz", "Whether this replica is alive.")
        },
        Operation {
            answers: vec![(
                200,
                "It is ready.",
                content(json!({"type": "object", "required": ["ready"], "properties": {"ready": {"const": true}}})),
            )],
            refusals: &[],
            ..operation("get", "/readyz", "readyz", "Whether the database and a host answer this replica.")
        },
        Operation {
            answers: vec![(
                200,
                "OpenMetrics text.",
                json!({"application/openmetrics-text; version=1.0.0; charset=utf-8": {"schema": {"type": "string"}}}),
            )],
            refusals: &[],
            ..operation("get", "/metrics", "metrics", "What Prometheus reads.")
        },
    ]
}

fn parameter(name: &str, place: &str, required: bool, description: &str, schema: Value) -> Value {
    json!({"name": name, "in": place, "required": required, "description": description, "schema": schema})
}

fn schema(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

fn content(schema: Value) -> Value {
    json!({"application/json": {"schema": schema}})
}

fn of(name: &str) -> Value {
    content(schema(name))
}

fn listed(name: &str, item: Value) -> Value {
    content(json!({"type": "object", "required": [name], "properties": {name: {"type": "array", "items": item}}}))
}

fn counted() -> Value {
    content(json!({"type": "object", "required": ["count"], "properties": {"count": {"type": "integer", "minimum": 0}}}))
}

fn nullable(schema: Value) -> Value {
    json!({"anyOf": [schema, {"type": "null"}]})
}

fn states() -> Value {
    json!({"type": "string", "enum": ["pending", "running", "terminating", "succeeded", "failed", "expired"]})
}

fn place() -> Value {
    json!({"type": "string", "pattern": "^[0-9]{1,18}\\.[0-9]{1,18}$"})
}

/// As it is taken; it is answered in seconds.
fn duration() -> Value {
    json!({
        "description": "\"90s\", \"1h30m\", ISO 8601, or seconds.",
        "anyOf": [{"type": "number", "exclusiveMinimum": 0, "maximum": 3600}, {"type": "string", "pattern": "^[1-9][0-9]{0,2}(s|m)$"}],
    })
}

fn pairs() -> Value {
    json!({"type": "object", "additionalProperties": {"type": "string"}})
}

fn submission() -> Value {
    json!({
        "type": "object", "additionalProperties": false, "required": ["image"],
        "properties": {
            "image": {"type": "string", "pattern": "^[a-z0-9][A-Za-z0-9._/:@-]{0,254}$", "description": "Must be on the hosts already."},
            "command": {"type": "array", "items": {"type": "string"}, "description": "Arguments to the image's entrypoint; none: its own command."},
            "ttl": duration(), "max_ttl": duration(), "grace": duration(), "start_timeout": duration(), "queue_timeout": duration(),
            "name": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"},
            "labels": pairs(),
            "env": {"description": "Never answered again, only its keys.", "type": "object", "additionalProperties": {"type": "string"}},
            "cpus": {"type": "number", "minimum": 0.01, "maximum": 512, "default": 1},
            "memory": {"description": "Bytes, or as in \"64m\".", "anyOf": [{"type": "integer", "minimum": 6_291_456, "maximum": 1_099_511_627_776_i64}, {"type": "string", "pattern": "^[1-9][0-9]m$"}]},
            "pids": {"type": "integer", "minimum": 1, "maximum": 32_768, "default": 128},
            "network": {"type": "string", "enum": ["none", "bridge"], "default": "none"},
            "run_at": {"type": "string", "format": "date-time", "description": "Not before this instant, within the next year."},
        },
    })
}

fn agent() -> Value {
    let instant = || json!({"type": "string", "format": "date-time"});
    let text = || json!({"type": "string"});
    json!({
        "type": "object", "required": ["id", "state", "image", "command", "labels", "ttl", "max_ttl", "grace", "created_at", "attempts", "env_keys"],
        "properties": {
            "id": {"type": "string", "format": "uuid"}, "name": nullable(text()), "tenant": text(), "state": states(),
            "reason": nullable(text()), "image": text(), "command": {"type": "array", "items": text()}, "labels": pairs(),
            "ttl": {"type": "number"}, "max_ttl": {"type": "number"}, "grace": {"type": "number"},
            "run_at": nullable(instant()), "created_at": instant(), "started_at": nullable(instant()), "expires_at": nullable(instant()),
            "finished_at": nullable(instant()), "exit_code": nullable(json!({"type": "integer"})), "error": nullable(text()),
            "host": nullable(text()), "container_id": nullable(text()), "attempts": {"type": "integer"},
            "env_keys": {"type": "array", "items": text()},
        },
    })
}

fn event() -> Value {
    let nullable_text = || nullable(json!({"type": "string"}));
    json!({
        "type": "object", "required": ["at", "agent", "kind", "state"],
        "properties": {
            "at": {"type": "string", "format": "date-time"}, "agent": {"type": "string", "format": "uuid"},
            "kind": {"type": "string", "enum": ["state", "extended"]}, "was": nullable_text(), "state": states(), "reason": nullable_text(),
            "actor": nullable_text(), "host": nullable_text(), "epoch": {"type": "integer"}, "container_id": nullable_text(),
            "expires_at": nullable(json!({"type": "string", "format": "date-time"})), "exit_code": nullable(json!({"type": "integer"})),
        },
    })
}
