//! The patience that one connection gets. Knows bytes and time, nothing of requests.
//!
//! Guarantees: a head arrives within [`HEAD`] of its first byte (of the connection, for the first one); a client that takes nothing
//! for [`STALLED`] is cut; a client that is still sending when it was answered gets to read the answer.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::Response;
use hyper::body::{Body, Bytes, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep};

use super::routes::Content;

/// From the first byte of a head to its last.
const HEAD: Duration = Duration::from_secs(10);
/// Longest time in which a client takes nothing of its answer.
const STALLED: Duration = Duration::from_secs(30);
/// How long what a client still sends is thrown away after its connection was closed. Closing at once would reset it, and the client
/// might never read why.
const LINGER: Duration = Duration::from_secs(1);

const IDLE: u8 = 0;
const READING_HEAD: u8 = 1;
const BUSY: u8 = 2;

/// Where a connection is between two requests.
#[derive(Clone)]
pub struct Phase(Arc<AtomicU8>);

impl Phase {
    /// A head is complete: from here on other limits hold, until the answer is sent.
    pub fn busy(&self) -> Busy {
        self.0.store(BUSY, Ordering::Relaxed);
        Busy(self.clone())
    }
}

/// A request is being answered. The connection is idle again when this goes.
pub struct Busy(Phase);

impl Busy {
    /// Busy until the body was handed over.
    pub fn until_sent(self, response: Response<Content>) -> Response<Sending> {
        response.map(|content| Sending { content, _busy: self })
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.0.store(IDLE, Ordering::Relaxed);
    }
}

/// The body of an answer on its way.
pub struct Sending {
    content: Content,
    _busy: Busy,
}

impl Body for Sending {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        Pin::new(&mut self.content).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.content.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.content.size_hint()
    }
}

/// A socket whose other side must keep moving.
pub struct Patient {
    stream: TcpStream,
    phase: Phase,
    /// The end of the head's time, and later of the lingering.
    reading: Pin<Box<Sleep>>,
    /// Runs while the socket takes nothing.
    writing: Pin<Box<Sleep>>,
    blocked: bool,
    closed: bool,
}

impl Patient {
    /// Wraps a fresh connection, whose first head's time begins now.
    pub fn new(stream: TcpStream) -> (Self, Phase) {
        let phase = Phase(Arc::new(AtomicU8::new(READING_HEAD)));
        let (reading, writing) = (Box::pin(tokio::time::sleep(HEAD)), Box::pin(tokio::time::sleep(STALLED)));
        (Self { stream, phase: phase.clone(), reading, writing, blocked: false, closed: false }, phase)
    }

    fn written(&mut self, cx: &mut Context<'_>, poll: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if poll.is_ready() {
            self.blocked = false;
            return poll;
        }
        if !self.blocked {
            self.blocked = true;
            self.writing.as_mut().reset(Instant::now() + STALLED);
        }
        ready!(self.writing.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")))
    }
}

impl AsyncRead for Patient {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let phase = this.phase.0.load(Ordering::Relaxed);
        if phase == READING_HEAD && this.reading.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the head does not come")));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        if phase == IDLE && buffer.filled().len() > before {
            this.phase.0.store(READING_HEAD, Ordering::Relaxed);
            this.reading.as_mut().reset(Instant::now() + HEAD);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Patient {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.written(cx, poll)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.written(cx, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.closed {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
            this.closed = true;
            this.reading.as_mut().reset(Instant::now() + LINGER);
        }
        let mut scrap = [0; 4096];
        loop {
            if this.reading.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut buffer = ReadBuf::new(&mut scrap);
            match ready!(Pin::new(&mut this.stream).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                _ => return Poll::Ready(Ok(())),
            }
        }
    }
}

/// Tells a client for whom there is no room to come again, whatever it asks.
pub async fn refuse(mut stream: TcpStream, permit: OwnedSemaphorePermit) {
    let _permit = permit;
    let body = super::problem::Problem::new(&super::problem::TOO_MANY_CONNECTIONS, "every connection is taken").json();
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: {}\r\ncontent-length: {}\r\nretry-after: 1\r\nconnection: close\r\n\r\n{body}",
        super::problem::MEDIA_TYPE,
        body.len()
    );
    let told = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        let mut scrap = [0; 4096];
        while stream.read(&mut scrap).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    let _best_effort = tokio::time::timeout(LINGER, told).await;
}
