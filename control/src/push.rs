//! The gateways' stream: who may have one, what goes over it, and what comes back.
//!
//! One thread, the `director`, knows what every gateway has and is to have; it never waits for a gateway. Each gateway has
//! a `session` of its own: a task that reads, and one that writes the parts of the one update that is under way. What
//! changes meanwhile is merged, and goes when the gateway has answered.

mod director;
mod gateway;
mod listener;
mod refusals;
mod session;

#[cfg(test)]
mod tests;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use postern_push::proto::EndpointUsage;
use postern_push::proto::push_server::PushServer;
use tokio::net::TcpListener;
use tokio::sync::{broadcast, mpsc, watch};

use crate::catalog::Catalog;
use crate::tls::ListenerTls;
use director::{Director, Event};
use refusals::Refusals;
use session::Sessions;

/// Where counters of endpoints go: id of the gateway, the life of its process that they count from, and the counters.
pub type UsageSink = Arc<dyn Fn(&str, &str, &[EndpointUsage]) + Send + Sync>;

/// How gateways are served.
#[derive(Clone)]
pub struct Settings {
    /// TLS; `None`: plain, for loopback or where somebody said so.
    pub tls: Option<ListenerTls>,
    /// How often gateways report.
    pub status_interval: Duration,
    /// After so long without an answer to an update the gateway's status says so.
    pub answer_within: Duration,
    /// What a gateway refused is tried again after the first, then after twice as long each time, at most the second.
    pub retry_within: (Duration, Duration),
    /// Full snapshots under way at a time; other gateways that need one wait their turn.
    pub full_at_once: usize,
    /// How long one that does not answer keeps others waiting.
    pub full_within: Duration,
    /// HTTP/2 pings on silent connections, and how long their answer may take.
    pub keepalive: (Duration, Duration),
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tls: None,
            status_interval: Duration::from_secs(10),
            answer_within: Duration::from_secs(30),
            retry_within: (Duration::from_secs(5), Duration::from_secs(300)),
            full_at_once: 16,
            full_within: Duration::from_secs(10),
            keepalive: (Duration::from_secs(10), Duration::from_secs(20)),
        }
    }
}

/// Why gateways cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// No thread.
    #[error("the thread that decides what gateways get cannot be started: {0}")]
    Thread(#[source] io::Error),
    /// The listener.
    #[error("the listener of gateways at {address} failed: {source}")]
    Listener {
        /// Where it listened.
        address: SocketAddr,
        /// Why.
        source: tonic::transport::Error,
    },
    /// The listener's socket.
    #[error("the listener of gateways has no address: {0}")]
    Address(#[source] io::Error),
}

/// Messages of all gateways that wait for the director; a gateway that sends more waits itself.
const EVENTS: usize = 1024;

/// Serves gateways until `shutdown` is done.
///
/// # Errors
/// When it cannot begin, or the listener fails.
pub async fn serve(
    catalog: Arc<Catalog>,
    usage: UsageSink,
    settings: Settings,
    listener: TcpListener,
    shutdown: impl Future<Output = ()>,
) -> Result<(), PushError> {
    let address = listener.local_addr().map_err(PushError::Address)?;
    let (events, inbox) = mpsc::channel(EVENTS);
    // Subscribed before the director reads: nothing is missed.
    let changes = catalog.changes();
    let director = Director::new(catalog.clone(), settings.clone(), inbox);
    let thread = thread::Builder::new().name("push".to_owned()).spawn(move || director.run());
    let thread = thread.map_err(PushError::Thread)?;
    let forwarder = tokio::spawn(forward(changes, events.clone()));
    let (stop, stopping) = watch::channel(false);
    let refusals = Arc::new(Refusals::default());
    let sessions =
        Sessions { catalog, usage, settings: settings.clone(), events, stopping, refusals: refusals.clone() };
    let shutdown = async move {
        shutdown.await;
        let _ = stop.send(true);
    };
    let (keepalive, timeout) = settings.keepalive;
    let service = PushServer::new(sessions)
        .max_decoding_message_size(LARGEST_FROM_GATEWAY)
        .max_encoding_message_size(2 * postern_push::MESSAGE_BYTES);
    let served = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(keepalive))
        .http2_keepalive_timeout(Some(timeout))
        .max_concurrent_streams(Some(STREAMS))
        .http2_max_header_list_size(Some(16 << 10))
        .add_service(service)
        .serve_with_incoming_shutdown(listener::incoming(listener, settings.tls.clone(), refusals), shutdown)
        .await;
    forwarder.abort();
    // The director ends when the last one who could tell it something is gone. Streams of gateways are ended by then.
    drop(tokio::task::spawn_blocking(move || thread.join()));
    served.map_err(|source| PushError::Listener { address, source })
}

/// Largest message from a gateway, in bytes.
const LARGEST_FROM_GATEWAY: usize = 4 << 20;

/// Streams of one connection. One is needed; one more while the old one ends.
const STREAMS: u32 = 4;

/// Tells the director of changes of the catalog, and of time.
async fn forward(mut changes: broadcast::Receiver<Arc<crate::catalog::Change>>, events: mpsc::Sender<Event>) {
    let mut clock = tokio::time::interval(Duration::from_millis(500));
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let event = tokio::select! {
            change = changes.recv() => match change {
                Ok(change) => Event::Change(change),
                Err(broadcast::error::RecvError::Lagged(_)) => Event::Resync,
                Err(broadcast::error::RecvError::Closed) => return,
            },
            _ = clock.tick() => Event::Tick,
        };
        if events.send(event).await.is_err() {
            return;
        }
    }
}
