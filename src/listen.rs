//! Hears notifications, on a connection of its own that does nothing else. They are hints: losing every one of them only makes
//! things slower, down to the poll interval.
//!
//! Guarantees: after every reconnect, LISTEN comes first and a look at everything after it, so that nothing said in between is
//! missed; a connection that went deaf without saying so is noticed within two probes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_postgres::{AsyncMessage, Client, Config, NoTls};

use crate::error::Error;
use crate::replica::Replica;
use crate::wake::{DUE, WAITS};

/// The channel of `sundown.wake`.
const CHANNEL: &str = "sundown_wake";
/// How often the connection is asked whether it still hears.
const PROBE: Duration = Duration::from_secs(10);
/// How long a notification to ourselves may take.
const PROBE_PATIENCE: Duration = Duration::from_secs(2);
const CONNECT: Duration = Duration::from_secs(3);
const BACKOFF: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// Behind a transaction pooler LISTEN is accepted and never heard: how long to poll before trying again.
const DEAF_PAUSE: Duration = Duration::from_secs(60);

/// The reason that a notification gives; `None`: it is our own probe.
type Heard = Option<String>;

enum Ended {
    /// The connection broke, or there was none.
    Broken(String),
    /// It never heard itself: a pooler is in between.
    Deaf,
}

/// Listens until told to stop.
pub async fn run(replica: Arc<Replica>, config: Config) {
    let mut backoff = BACKOFF;
    let mut said = false;
    while !replica.stop.is_cancelled() {
        let mut heard = false;
        let ended = tokio::select! {
            ended = listen(&replica, &config, &mut heard) => ended,
            () = replica.stop.cancelled() => return,
        };
        if replica.listening.swap(false, Ordering::AcqRel) {
            // Poll at the full pace from now on.
            replica.wakes.sweeper.notify_one();
        }
        replica.metrics.listening.set(0);
        if heard {
            (backoff, said) = (BACKOFF, false);
        }
        let pause = match ended {
            Ended::Deaf => {
                if !said {
                    tracing::warn!(
                        "notifications do not arrive, probably because a transaction pooler is in between; polling instead. \
                         Set SUNDOWN_DIRECT_URL to an address of Postgres itself"
                    );
                }
                DEAF_PAUSE
            }
            Ended::Broken(error) => {
                if !said {
                    tracing::warn!(error, "the listening connection broke; polling until it is back");
                }
                backoff = (backoff * 2).min(BACKOFF_MAX);
                backoff
            }
        };
        said = true;
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = replica.stop.cancelled() => return,
        }
    }
}

async fn listen(replica: &Replica, config: &Config, heard: &mut bool) -> Ended {
    let connected = tokio::time::timeout(CONNECT, config.connect(NoTls)).await;
    let (client, mut connection) = match connected {
        Ok(Ok(connected)) => connected,
        Ok(Err(error)) => return Ended::Broken(Error::from(error).to_string()),
        Err(_) => return Ended::Broken("no connection in time".to_owned()),
    };
    // Read at once and without fail: a listener that does not read holds back vacuum in the whole cluster.
    let (sender, mut messages) = mpsc::unbounded_channel();
    let driver = tokio::spawn(async move {
        while let Some(Ok(message)) = std::future::poll_fn(|context| connection.poll_message(context)).await {
            if let AsyncMessage::Notification(notification) = message {
                let _ended = sender.send((notification.channel() == CHANNEL).then(|| notification.payload().to_owned()));
            }
        }
    });
    let ended = hear(replica, &client, &mut messages, heard).await;
    driver.abort();
    ended
}

async fn hear(replica: &Replica, client: &Client, messages: &mut mpsc::UnboundedReceiver<Heard>, heard: &mut bool) -> Ended {
    let own = format!("sundown_probe_{}", replica.id());
    match tokio::time::timeout(CONNECT, client.batch_execute(&format!("listen {CHANNEL}; listen {own}"))).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Ended::Broken(Error::from(error).to_string()),
        Err(_) => return Ended::Broken("LISTEN was not answered in time".to_owned()),
    }
    loop {
        // Hearing what another connection said proves the whole way; what this one says, a transaction pooler hands back to it.
        // Asked first, so that nothing is believed before it is known.
        if let Err(error) = replica.sql.probe(&own).await {
            return Ended::Broken(error.to_string());
        }
        let patience = tokio::time::sleep(PROBE_PATIENCE);
        tokio::pin!(patience);
        loop {
            tokio::select! {
                message = messages.recv() => match message {
                    Some(None) => break,
                    Some(Some(reason)) => look(replica, &reason),
                    None => return Ended::Broken("the connection was closed".to_owned()),
                },
                () = &mut patience => {
                    // The connection that listens, behind a pooler, is somebody else's next.
                    let _best_effort = tokio::time::timeout(PROBE_PATIENCE, client.batch_execute("unlisten *")).await;
                    return if *heard { Ended::Broken("it went deaf".to_owned()) } else { Ended::Deaf };
                }
            }
        }
        if !*heard {
            *heard = true;
            replica.listening.store(true, Ordering::Release);
            replica.metrics.listening.set(1);
            tracing::info!("notifications arrive");
            // Said before we listened: look for it.
            replica.wakes.look_at_everything();
        }
        let next = tokio::time::sleep(PROBE);
        tokio::pin!(next);
        loop {
            tokio::select! {
                message = messages.recv() => match message {
                    Some(None) => {}
                    Some(Some(reason)) => look(replica, &reason),
                    None => return Ended::Broken("the connection was closed".to_owned()),
                },
                () = &mut next => break,
            }
        }
    }
}

fn look(replica: &Replica, reason: &str) {
    match reason {
        WAITS => replica.wakes.somebody_waits(),
        DUE => replica.wakes.something_is_due(),
        // Of a later release: whatever it means, looking does no harm.
        _ => replica.wakes.look_at_everything(),
    }
}
