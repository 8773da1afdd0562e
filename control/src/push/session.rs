//! One gateway's stream.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::Stream;
use postern_push::proto::push_server::Push;
use postern_push::proto::{FromGateway, Hello, Key, ToGateway, Welcome, from_gateway, to_gateway};
use postern_push::{VERSION, parts};
use postern_tables::ResourceKey;
use tokio::sync::{mpsc, oneshot, watch};
use tonic::{Code, Request, Response, Status, Streaming};

use super::director::{Event, FromSession};
use super::gateway::Batch;
use super::listener::Peer;
use super::refusals::Refusals;
use super::{Settings, UsageSink};
use crate::catalog::{Caller, Catalog};
use crate::compile::Rendered;

/// How long a gateway may take until it has said who it is.
const HELLO: Duration = Duration::from_secs(10);

/// Parts of an update that wait for the connection.
const PARTS: usize = 2;

/// What the director gives a session.
#[derive(Debug)]
pub(super) struct Outbox {
    /// Updates: one, until it is answered.
    pub(super) updates: mpsc::Sender<Batch>,
    /// Ends the stream.
    pub(super) end: oneshot::Sender<Status>,
}

/// The service that gateways call.
pub(super) struct Sessions {
    pub(super) catalog: Arc<Catalog>,
    pub(super) usage: UsageSink,
    pub(super) settings: Settings,
    pub(super) events: mpsc::Sender<Event>,
    /// Becomes true when control ends.
    pub(super) stopping: watch::Receiver<bool>,
    pub(super) refusals: Arc<Refusals>,
}

/// Whom the credentials of a stream stand for.
enum Credentials {
    Certificate(String),
    Token(Caller),
}

impl Credentials {
    fn may_be(&self, gateway: &str) -> Result<(), Status> {
        let (who, allowed) = match self {
            Self::Certificate(name) => (format!("the certificate of {name}"), name == gateway),
            Self::Token(caller) => {
                (format!("a token of {}", caller.principal), caller.is_operator() || caller.principal == gateway)
            }
        };
        if allowed {
            return Ok(());
        }
        Err(Status::permission_denied(format!("{who} does not allow to be gateway \"{}\"", shorten(gateway))))
    }
}

/// Numbers sessions, so that what an older one of the same gateway still says is known as such.
static SESSIONS: AtomicU64 = AtomicU64::new(1);

type Outgoing = mpsc::Sender<Result<ToGateway, Status>>;

#[tonic::async_trait]
impl Push for Sessions {
    type StreamStream = Pin<Box<dyn Stream<Item = Result<ToGateway, Status>> + Send>>;

    async fn stream(&self, request: Request<Streaming<FromGateway>>) -> Result<Response<Self::StreamStream>, Status> {
        let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
        let credentials = self.credentials(&request).inspect_err(|status| refused(&self.refusals, &peer, status))?;
        let (outgoing, receiver) = mpsc::channel(PARTS);
        let session = Session {
            catalog: self.catalog.clone(),
            usage: self.usage.clone(),
            settings: self.settings.clone(),
            events: self.events.clone(),
            stopping: self.stopping.clone(),
            refusals: self.refusals.clone(),
            peer,
            outgoing,
        };
        tokio::spawn(session.run(credentials, request.into_inner()));
        let stream = futures_util::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|message| (message, receiver))
        });
        Ok(Response::new(Box::pin(stream)))
    }
}

impl Sessions {
    fn credentials(&self, request: &Request<Streaming<FromGateway>>) -> Result<Credentials, Status> {
        if let Some(header) = request.metadata().get("authorization") {
            let token = header.to_str().ok().and_then(|header| header.strip_prefix("Bearer "));
            let caller = token.and_then(|token| self.catalog.caller_of_token(token));
            return caller.map(Credentials::Token).ok_or_else(|| Status::unauthenticated("the token is not known"));
        }
        let certificate = request.extensions().get::<Peer>().and_then(|peer| peer.certificate.clone());
        certificate.map(Credentials::Certificate).ok_or_else(|| {
            Status::unauthenticated(
                "a gateway needs a client certificate with its name, or a token as bearer authorization",
            )
        })
    }
}

struct Session {
    catalog: Arc<Catalog>,
    usage: UsageSink,
    settings: Settings,
    events: mpsc::Sender<Event>,
    stopping: watch::Receiver<bool>,
    refusals: Arc<Refusals>,
    peer: Peer,
    outgoing: Outgoing,
}

impl Session {
    async fn run(self, credentials: Credentials, mut incoming: Streaming<FromGateway>) {
        if let Err(status) = self.talk(&credentials, &mut incoming).await {
            refused(&self.refusals, &self.peer, &status);
            let _ = tokio::time::timeout(Duration::from_secs(1), self.outgoing.send(Err(status))).await;
        }
    }

    async fn talk(&self, credentials: &Credentials, incoming: &mut Streaming<FromGateway>) -> Result<(), Status> {
        let first = tokio::time::timeout(HELLO, incoming.message());
        let mut stopping = self.stopping.clone();
        let first = tokio::select! {
            first = first => first,
            _ = stopping.wait_for(|stopping| *stopping) => return Err(ends()),
        };
        let first = first.map_err(|_| Status::deadline_exceeded("the gateway did not say who it is within 10 s"))??;
        let hello = match first.and_then(|first| first.message) {
            Some(from_gateway::Message::Hello(hello)) => hello,
            _ => return Err(Status::invalid_argument("the first message is not a Hello")),
        };
        if !(hello.oldest_version..=hello.newest_version).contains(&VERSION) {
            return Err(Status::failed_precondition(format!(
                "control speaks version {VERSION} of the gateway protocol, the gateway {} to {}; upgrade the older of them",
                hello.oldest_version, hello.newest_version
            )));
        }
        credentials.may_be(&hello.gateway)?;
        let id = self.gateway_id(&hello)?;
        let welcome = Welcome {
            version: VERSION,
            catalog: self.catalog.id().to_owned(),
            status_interval_milliseconds: u32::try_from(self.settings.status_interval.as_millis()).unwrap_or(u32::MAX),
        };
        let welcome = ToGateway { message: Some(to_gateway::Message::Welcome(welcome)) };
        self.outgoing.send(Ok(welcome)).await.map_err(|_| gone())?;
        let number = SESSIONS.fetch_add(1, Ordering::Relaxed);
        let (updates, orders) = mpsc::channel(1);
        let (end, mut ended) = oneshot::channel();
        let boot_id = hello.boot_id.clone();
        self.tell(&id, number, FromSession::Connected(Box::new(hello), Outbox { updates, end })).await?;
        let writer = tokio::spawn(write(orders, self.outgoing.clone()));
        let result = loop {
            let message = tokio::select! {
                _ = stopping.wait_for(|stopping| *stopping) => break Err(ends()),
                status = &mut ended => break Err(status.unwrap_or_else(|_| ends())),
                () = self.outgoing.closed() => break Ok(()),
                message = incoming.message() => message,
            };
            match message {
                Ok(None) => break Ok(()),
                Err(status) => break Err(status),
                Ok(Some(message)) => {
                    if let Err(status) = self.take(&id, number, &boot_id, message).await {
                        break Err(status);
                    }
                }
            }
        };
        writer.abort();
        let _ = self.tell(&id, number, FromSession::Disconnected).await;
        result
    }

    async fn take(&self, id: &str, number: u64, boot_id: &str, message: FromGateway) -> Result<(), Status> {
        let message = match message.message {
            Some(from_gateway::Message::Applied(applied)) => FromSession::Applied(applied.generation),
            Some(from_gateway::Message::Refused(refused)) => FromSession::Refused(refused),
            Some(from_gateway::Message::Status(mut status)) => {
                let endpoints = std::mem::take(&mut status.endpoints);
                if !endpoints.is_empty() {
                    let (usage, gateway, boot_id) = (self.usage.clone(), id.to_owned(), boot_id.to_owned());
                    // May wait for the disk.
                    let recorded = tokio::task::spawn_blocking(move || usage(&gateway, &boot_id, &endpoints));
                    recorded.await.map_err(|_| Status::internal("the counters cannot be recorded"))?;
                }
                if let Some(view) = status.targets.iter().find(|view| view.address.parse::<std::net::IpAddr>().is_err())
                {
                    let address = shorten(&view.address);
                    return Err(Status::invalid_argument(format!(
                        "targets.address is \"{address}\", which is no address"
                    )));
                }
                FromSession::Status(Box::new(status))
            }
            Some(from_gateway::Message::Hello(_)) => return Err(Status::invalid_argument("a second Hello")),
            None => return Err(Status::invalid_argument("a message without content")),
        };
        self.tell(id, number, message).await
    }

    async fn tell(&self, id: &str, session: u64, message: FromSession) -> Result<(), Status> {
        let event = Event::Gateway { id: id.to_owned(), session, message };
        self.events.send(event).await.map_err(|_| ends())
    }

    fn gateway_id(&self, hello: &Hello) -> Result<String, Status> {
        let state = self.catalog.read();
        let found = state.gateways().find(|gateway| gateway.metadata.name == hello.gateway);
        found.map(|gateway| gateway.metadata.id.clone()).ok_or_else(|| {
            let name = shorten(&hello.gateway);
            Status::not_found(format!(
                "there is no gateway \"{name}\" in the catalog; an operator has to make it first"
            ))
        })
    }
}

/// Writes updates, part by part, at the pace of the connection.
async fn write(mut orders: mpsc::Receiver<Batch>, outgoing: Outgoing) {
    while let Some(batch) = orders.recv().await {
        let Batch { generation, full, digest, changed, removed } = batch;
        let changed = changed.into_iter().map(|rendered: Arc<Rendered>| rendered.message());
        let removed = removed.into_iter().map(|key: ResourceKey| Key::from(&key));
        for part in parts(generation, full, digest.to_be_bytes().to_vec(), changed, removed) {
            let message = ToGateway { message: Some(to_gateway::Message::Update(part)) };
            if outgoing.send(Ok(message)).await.is_err() {
                return;
            }
        }
    }
}

/// Says what a stream was refused for; one that only ended was not refused.
fn refused(refusals: &Refusals, peer: &Peer, status: &Status) {
    if matches!(
        status.code(),
        Code::Unauthenticated
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::NotFound
            | Code::InvalidArgument
            | Code::DeadlineExceeded
    ) {
        refusals.say(&format!("a gateway's stream from {peer} is refused: {}", status.message()));
    }
}

fn ends() -> Status {
    Status::unavailable("control ends")
}

fn gone() -> Status {
    Status::cancelled("the gateway is gone")
}

/// At most 128 characters of what a stranger sent.
fn shorten(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(128).collect()
}
