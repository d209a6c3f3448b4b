//! Connections to one daemon that are kept from call to call, each of which has proved that it leads there.
//!
//! An address proves nothing: after a restart of the machine, or behind a name that moves, another daemon may answer there, and to that one every
//! agent of ours is gone. So a connection that is opened asks first who it has reached, and is closed if that is not who was connected to. Opening
//! and proving one costs more than most calls; kept, it costs nothing.
//!
//! Must not know what is called: the client library's pool hands connections out, one call at a time on each.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bollard::BollardRequest;
use bollard::errors::Error as BollardError;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Request, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tower_service::Service;
use uuid::Uuid;

use super::container::uuid_label;
use super::{HEAD, LABEL_HOST, LOOK, socket};

/// How long a connection is kept that nobody uses: longer than a keeper's pause between its lists.
const IDLE: Duration = Duration::from_secs(15);
/// Most that are kept unused: as many as there are lanes to a host, and no reason for more.
const KEPT: usize = 32;
/// A volume says more about itself than who it is, but not much.
const VOLUME: usize = 64 << 10;

/// The client library over connections that are kept. `fresh`: the same daemon, with a connection for each call.
pub(super) fn keeping(fresh: &bollard::Docker, endpoint: &str, volume: &str, host: Uuid) -> Result<bollard::Docker, BollardError> {
    // The authority is for the request's Host alone: where a connection leads is the connector's to know.
    let address = if socket(endpoint).is_some() { "http://docker".to_owned() } else { endpoint.replacen("tcp://", "http://", 1) };
    let connector = Connector { endpoint: endpoint.to_owned(), proof: format!("/volumes/{volume}"), host };
    let client = Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(KEPT)
        .build(connector);
    let transport = move |request: BollardRequest| {
        let answer = client.request(request);
        async move { answer.await.map_err(BollardError::from) }
    };
    bollard::Docker::connect_with_custom_transport(transport, Some(address), HEAD.as_secs(), &fresh.client_version())
}

/// Opens connections, and lets none through that leads elsewhere.
#[derive(Clone)]
struct Connector {
    endpoint: String,
    /// Path of what tells who a daemon is.
    proof: String,
    host: Uuid,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Box<dyn Duplex>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, address: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            // The pool goes on with it when whoever asked has given up, so it has to end by itself.
            timeout(LOOK, async { connector.prove(connector.open(&address).await?, &address).await })
                .await
                .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "the daemon does not say who it is")))
                .map(TokioIo::new)
        })
    }
}

impl Connector {
    async fn open(&self, address: &Uri) -> io::Result<Box<dyn Duplex>> {
        if let Some(socket) = socket(&self.endpoint) {
            return Ok(Box::new(UnixStream::connect(socket).await?));
        }
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        Ok(Box::new(tcp.call(address.clone()).await.map_err(io::Error::other)?.into_inner()))
    }

    /// Asks who has been reached, on the connection itself, and gives it back if it is who it should be.
    async fn prove(&self, stream: Box<dyn Duplex>, address: &Uri) -> io::Result<Box<dyn Duplex>> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        let request = Request::get(&self.proof)
            .header(HOST, address.authority().map_or("docker", |authority| authority.as_str()))
            .body(Empty::<Bytes>::new());
        let request = request.map_err(io::Error::other)?;
        let asked = async move {
            let answer = sender.send_request(request).await.map_err(io::Error::other)?;
            let body = Limited::new(answer.into_body(), VOLUME).collect().await.map_err(io::Error::other)?;
            Ok(body.to_bytes())
        };
        let given_back = async { connection.without_shutdown().await.map_err(io::Error::other) };
        let (body, parts) = tokio::try_join!(asked, given_back)?;
        // A refusal is no volume, and has no labels.
        let volume = serde_json::from_slice::<bollard::models::Volume>(&body).ok();
        match volume.and_then(|volume| uuid_label(&volume.labels, LABEL_HOST)) {
            Some(host) if host == self.host && parts.read_buf.is_empty() => Ok(parts.io.into_inner()),
            _ => Err(io::Error::other("another daemon answers there, or it has lost its volume")),
        }
    }
}

/// A connection, by socket or by network.
trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

impl Connection for Box<dyn Duplex> {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}
