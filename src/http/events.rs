//! `GET /events`: every transition of every agent as it happens, as Server-Sent Events. Whoever comes back with the id of the last event that he
//! saw misses none.
//!
//! One question for all who follow, a few times a second, while there are any; who comes late or is slow reads on by himself until he is with
//! the others.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::HeaderValue;
use hyper::{Request, Response, StatusCode};
use tokio::sync::Mutex;
use tokio::sync::broadcast::{self, error::RecvError};
use uuid::Uuid;

use super::Caller;
use super::problem::Problem;
use super::request::Query;
use super::routes::{Answer, Content, ask, typed};
use crate::error::Error;
use crate::sql::Sql;
use crate::sql::feed::{Event, Place};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// Most events of one look.
const PAGE: i64 = 500;
/// How many looks a follower may be behind before he reads on by himself.
const BEHIND: usize = 64;
/// Longest silence: proxies close what says nothing, and whoever hung up is noticed by writing to him.
const SILENCE: Duration = Duration::from_secs(15);

type Page = Arc<Vec<Arc<Event>>>;

/// Those who follow.
#[derive(Clone, Default)]
pub struct Feed(Arc<Mutex<Option<broadcast::WeakSender<Page>>>>);

impl Feed {
    /// Every event that is not visible yet, and maybe some that are.
    async fn follow(&self, sql: &Sql) -> Result<broadcast::Receiver<Page>, Error> {
        let mut feed = self.0.lock().await;
        if let Some(pages) = feed.as_ref().and_then(broadcast::WeakSender::upgrade) {
            return Ok(pages.subscribe());
        }
        // Before anybody reads what there is: between the two nothing is lost.
        let (from, _oldest) = sql.events_now().await?;
        let (pages, follower) = broadcast::channel(BEHIND);
        *feed = Some(pages.downgrade());
        tokio::spawn(self.clone().look(sql.clone(), from, pages));
        Ok(follower)
    }

    async fn look(self, sql: Sql, mut from: Place, pages: broadcast::Sender<Page>) {
        loop {
            tokio::time::sleep(LOOK).await;
            {
                let mut feed = self.0.lock().await;
                if pages.receiver_count() == 0 {
                    *feed = None;
                    return;
                }
            }
            // With the database away there is nothing to say; it goes on where it was.
            while let Ok(page) = sql.events_after(from, PAGE).await
                && let Some(last) = page.last()
            {
                from = last.place;
                let full = i64::try_from(page.len()).is_ok_and(|events| events >= PAGE);
                let _nobody = pages.send(Arc::new(page.into_iter().map(Arc::new).collect()));
                if !full {
                    break;
                }
            }
        }
    }
}

/// `GET /events`
pub async fn get(caller: &Caller, request: &Request<Incoming>) -> Answer {
    let mut query = Query::of(request)?;
    let agent = query.one("agent", "the id of an agent", |text| Uuid::try_parse(text).ok())?;
    let after = query.one("after", "the id of an event", |text| text.parse::<Place>().ok())?;
    query.done()?;
    // A browser that comes back says it by itself, and knows better than the address that it was given.
    let last = match request.headers().get("last-event-id") {
        Some(id) => {
            let place = id.to_str().ok().and_then(|id| id.parse::<Place>().ok());
            Some(place.ok_or_else(|| Problem::parameter("Last-Event-ID", "the id of an event"))?)
        }
        None => after,
    };
    let (state, shutdown) = (caller.state.clone(), caller.shutdown.clone());
    let asking = state.clone();
    let (pages, now, oldest) = ask(async move {
        let pages = asking.feed.follow(&asking.sql).await?;
        let (now, oldest) = asking.sql.events_now().await?;
        Ok((pages, now, oldest))
    })
    .await?;
    // Of another database, or of one that has lost its latest transactions: whoever waited for it to come would wait for ever.
    if last.is_some_and(|last| last > now) {
        return Err(Problem::parameter("Last-Event-ID", "the id of an event of this installation"));
    }
    let mut follower =
        Follower { sql: state.sql.clone(), pages, place: last.unwrap_or(now), agent, late: true, ready: Vec::new(), gap: None };
    // `0.0` asks for whatever is kept.
    follower.gap = oldest.filter(|oldest| last.is_some_and(|last| last > Place::default() && last < *oldest));
    let frames = stream::unfold(follower, move |mut follower| {
        let shutdown = shutdown.clone();
        async move {
            let text = tokio::select! {
                text = follower.next() => text?,
                () = shutdown.cancelled() => return None,
            };
            Some((Ok::<_, Infallible>(Frame::data(Bytes::from(text))), follower))
        }
    });
    Ok(streaming(StreamBody::new(frames).map_err(|never| -> io::Error { match never {} }).boxed_unsync()))
}

fn streaming(content: Content) -> Response<Content> {
    let mut response = typed(StatusCode::OK, "text/event-stream", content);
    // A proxy that buffers would show nothing until there is much.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// Somebody who follows.
struct Follower {
    sql: Sql,
    pages: broadcast::Receiver<Page>,
    /// After the last event that he was told of, or that is none of his.
    place: Place,
    /// Of this one only.
    agent: Option<Uuid>,
    /// He is not with the others yet.
    late: bool,
    ready: Vec<Arc<Event>>,
    /// The oldest event that is kept, if what he saw last is kept no more.
    gap: Option<Place>,
}

impl Follower {
    /// What to send next: events, or that there are none. `None`: he should come back.
    async fn next(&mut self) -> Option<String> {
        if let Some(oldest) = self.gap.take() {
            return Some(format!("event: gap\ndata: {{\"oldest\":\"{oldest}\"}}\n\n"));
        }
        loop {
            let news = self.news();
            if !news.is_empty() {
                return Some(news);
            }
            if self.late {
                match self.sql.events_after(self.place, PAGE).await {
                    Ok(page) => {
                        self.late = i64::try_from(page.len()).is_ok_and(|events| events >= PAGE);
                        self.ready = page.into_iter().map(Arc::new).collect();
                    }
                    Err(_away) => {
                        tokio::time::sleep(LOOK * 10).await;
                        return Some(": the database is away\n\n".to_owned());
                    }
                }
                continue;
            }
            match tokio::time::timeout(SILENCE, self.pages.recv()).await {
                Ok(Ok(page)) => self.ready = page.to_vec(),
                Ok(Err(RecvError::Lagged(_))) => self.late = true,
                Ok(Err(RecvError::Closed)) => return None,
                Err(_elapsed) => return Some(":\n\n".to_owned()),
            }
        }
    }

    /// What is new to him of what is ready.
    fn news(&mut self) -> String {
        let mut text = String::new();
        for event in self.ready.drain(..) {
            // What he read by himself comes once more with the others.
            let is_new = event.place > self.place;
            self.place = self.place.max(event.place);
            if is_new && self.agent.is_none_or(|agent| agent == event.agent) {
                text.push_str(&format!("id: {}\ndata: {}\n\n", event.place, event.json));
            }
        }
        text
    }
}
