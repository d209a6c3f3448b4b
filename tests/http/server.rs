//! A server on a free port, and a client that says what it saw.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use hyper::body::Bytes;
use prometheus_client::registry::Registry;
use reqwest::Method;
use reqwest::header::HeaderMap;
use serde_json::Value;
use sundown::http::{Behind, Ends, Feed, LogQuery, Meters, Readiness, State, serve};
use sundown::sql::Sql;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::harness::Db;

/// What a test sees of a server.
pub struct Server {
    pub address: SocketAddr,
    pub ready: Arc<Readiness>,
    /// Whether it believes that a host can be reached.
    pub host: Arc<AtomicBool>,
    pub pokes: Arc<AtomicUsize>,
    /// What the log hook was asked for.
    pub asked: Arc<Mutex<Vec<(i32, String, LogQuery)>>>,
    pub shutdown: CancellationToken,
    pub served: Option<JoinHandle<()>>,
    client: reqwest::Client,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Checks that it is a problem in every respect, and answers its code.
    pub fn code(&self) -> String {
        assert_eq!(self.header("content-type"), "application/problem+json", "{self:?}");
        let problem = self.json();
        assert_eq!(problem["status"], self.status, "{self:?}");
        for field in ["type", "title", "code", "detail", "hint"] {
            assert!(!problem[field].as_str().unwrap_or_default().is_empty(), "no {field}: {self:?}");
        }
        let code = problem["code"].as_str().unwrap_or_default().to_owned();
        assert!(sundown::http::problem::CODES.iter().any(|known| known.name == code), "{code} is not listed");
        code
    }

    pub fn id(&self) -> String {
        self.json()["id"].as_str().unwrap_or_else(|| panic!("no id: {self:?}")).to_owned()
    }
}

/// Host 7 is served: its containers say hello and then, when followed, nothing for ever.
fn hello(host: i32, query: LogQuery) -> Option<stream::BoxStream<'static, Result<Bytes, String>>> {
    let hello = stream::iter([Ok(Bytes::from_static(b"hello\n"))]);
    (host == 7).then(|| if query.follow { hello.chain(stream::pending()).boxed() } else { hello.boxed() })
}

impl Server {
    pub async fn new(sql: Sql) -> Self {
        let (server, behind, state) = Self::starting(sql).await;
        assert!(behind.set(state).is_ok());
        server
    }

    /// A server with nothing behind it yet, and what is to be put there.
    pub async fn starting(sql: Sql) -> (Self, Behind, Arc<State>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut registry = Registry::default();
        let meters = Meters::register(&mut registry);
        let host = Arc::new(AtomicBool::new(true));
        let reachable = Arc::clone(&host);
        let ready =
            Arc::new(Readiness { draining: AtomicBool::new(false), host_reachable: Box::new(move || reachable.load(Ordering::SeqCst)) });
        let (pokes, asked) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (counted, noted) = (Arc::clone(&pokes), Arc::clone(&asked));
        let state = State {
            sql,
            ends: Ends::default(),
            feed: Feed::default(),
            poke: Box::new(move |_wish| {
                counted.fetch_add(1, Ordering::SeqCst);
            }),
            ready: Arc::clone(&ready),
            live_log: Box::new(move |host, container, query| {
                noted.lock().unwrap().push((host, container, query));
                hello(host, query)
            }),
            metrics: Arc::new(registry),
            meters,
        };
        let shutdown = CancellationToken::new();
        let behind: Behind = Arc::new(OnceLock::new());
        let served = Some(tokio::spawn(serve(listener, Arc::clone(&behind), shutdown.clone())));
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(30)).build().unwrap();
        (Self { address, ready, host, pokes, asked, shutdown, served, client }, behind, Arc::new(state))
    }

    /// A server on a database of its own.
    pub async fn with_database() -> (Self, Db) {
        let database = Db::new().await;
        (Self::new(database.sql(8).await).await, database)
    }

    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method, format!("http://{}{path}", self.address))
    }

    pub async fn send(request: reqwest::RequestBuilder) -> Answer {
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Answer { status, headers, text: response.text().await.unwrap() }
    }

    pub async fn get(&self, path: &str) -> Answer {
        Self::send(self.request(Method::GET, path)).await
    }

    pub async fn delete(&self, id: &str) -> Answer {
        Self::send(self.request(Method::DELETE, &format!("/agents/{id}"))).await
    }

    pub async fn post(&self, body: impl Into<reqwest::Body>) -> Answer {
        Self::send(self.request(Method::POST, "/agents").body(body)).await
    }

    pub async fn post_with_key(&self, key: &str, body: &'static str) -> Answer {
        Self::send(self.request(Method::POST, "/agents").header("idempotency-key", key).body(body)).await
    }

    pub async fn patch(&self, id: &str, body: &'static str) -> Answer {
        Self::send(self.request(Method::PATCH, &format!("/agents/{id}")).body(body)).await
    }

    /// A new agent's id.
    pub async fn submit(&self, body: &'static str) -> String {
        let answer = self.post(body).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        answer.id()
    }
}

/// Makes an agent run on host 7 as a launcher would, to see what HTTP makes of one that does.
pub async fn run_it(database: &Db, id: &str) {
    let client = database.client().await;
    let statement = format!(
        "insert into sundown.host (id, uuid, name, endpoint, seen_at) overriding system value
             values (7, gen_random_uuid(), 'seven', 'unix:', now()) on conflict do nothing;
         insert into sundown.host_slot (host, capacity) values (7, 100) on conflict do nothing;
         update sundown.host_slot set used = used + 1 where host = 7;
         update sundown.agent_live set host = 7, epoch = 1, placed_at = now(), expires_at = now() + interval '1 hour', container_id = 'c0ffee'
          where id = '{id}';
         update sundown.agent_live set state = 'running', started_at = now(), expires_at = now() + ttl, due_at = now() + ttl where id = '{id}'"
    );
    client.batch_execute(&statement).await.unwrap();
}

/// Ends such an agent as a finisher would.
pub async fn finish_it(database: &Db, id: &str, tail: &str) {
    let client = database.client().await;
    let statement = format!(
        "update sundown.agent_live set ended_state = 'succeeded', ended_reason = 'exited', exit_code = 0, observed_at = now() where id = '{id}';
         insert into sundown.agent_log (id, tail, truncated, taken_at) values ('{id}', '{tail}', true, now());
         with gone as (delete from sundown.agent_live where id = '{id}' returning *)
         insert into sundown.agent_outcome (id, state, reason, host, container_id, exit_code, ttl, attempts, epoch, expires_at, placed_at, started_at,
                                            observed_at, finished_at)
         select id, ended_state, ended_reason, host, container_id, exit_code, ttl, attempts, epoch, expires_at, placed_at, started_at, observed_at, now() from gone"
    );
    client.batch_execute(&statement).await.unwrap();
}
