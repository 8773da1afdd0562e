//! One stream to control, from Hello to its end.

use std::sync::Arc;
use std::time::Duration;

use postern_push::proto::from_gateway::Message as Said;
use postern_push::proto::to_gateway::Message as Heard;
use postern_push::proto::{self, FromGateway, Hello, ToGateway, Update, Welcome};
use postern_push::{Assembled, Assembler, VERSION};
use postern_tables::check::ControlSettings;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming};
use tracing::info;

use super::applier::{AppliedState, Outcome};
use super::capabilities::CAPABILITIES;
use super::connection::{Connection, broken, connect};
use super::report::StatusReader;
use super::{Identity, LinkStatus};

/// Messages that may wait for control to take them. While there is no room, no status is made.
const OUTBOX: usize = 4;
/// How long control may take to say Welcome.
const WELCOME: Duration = Duration::from_secs(10);
/// Bounds of the interval that control may ask for, and what it is if it does not say.
const STATUS: (Duration, Duration, Duration) =
    (Duration::from_millis(100), Duration::from_secs(300), Duration::from_secs(10));

/// How a stream ended.
#[derive(Debug)]
pub(super) enum End {
    /// It broke, or could not be opened.
    Broken(String),
    /// Control does not want this gateway as it is.
    Refused(String),
}

/// An update for the applier, and where its outcome goes.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) catalog: String,
    pub(super) update: Assembled,
    pub(super) outcome: oneshot::Sender<Outcome>,
}

/// What a stream needs.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) identity: Identity,
    pub(super) work: mpsc::Sender<Work>,
    /// Asks the applier for what is applied; answered when it is done with what it has.
    pub(super) applied: mpsc::Sender<oneshot::Sender<AppliedState>>,
    pub(super) reader: StatusReader,
    pub(super) status: Arc<LinkStatus>,
}

impl Session {
    /// Connects, and goes on until the stream ends. `welcomed` is called when control took this gateway.
    pub(super) async fn run(&mut self, settings: &ControlSettings, welcomed: impl FnOnce()) -> End {
        let Connection { mut client, token } = match connect(settings).await {
            Ok(connection) => connection,
            Err(error) => return End::Broken(error.to_string()),
        };
        let (to, from) = oneshot::channel();
        let asked = self.applied.send(to).await;
        let Some(applied) = asked.ok().map(|()| from) else { return stopping() };
        let Ok(applied) = applied.await else { return stopping() };
        let (outbox, messages) = mpsc::channel(OUTBOX);
        let hello = self.hello(applied);
        let said = outbox.try_send(FromGateway { message: Some(Said::Hello(hello)) });
        debug_assert!(said.is_ok(), "the outbox is new");
        let mut request = Request::new(ReceiverStream::new(messages));
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", token);
        }
        let (mut inbox, welcome) = match timeout(WELCOME, open(&mut client, request)).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(end)) => return end,
            Err(_) => return End::Broken(format!("no Welcome within {} s", WELCOME.as_secs())),
        };
        if welcome.version != VERSION {
            let other = welcome.version;
            return End::Refused(format!(
                "control chose version {other} of the protocol; this gateway speaks {VERSION}"
            ));
        }
        welcomed();
        info!(catalog = welcome.catalog, "connected to control at {}", settings.address);
        self.status.connected(true);
        self.reader.begin();
        let end = self.converse(&mut inbox, &outbox, &welcome).await;
        self.status.connected(false);
        end
    }

    fn hello(&self, applied: AppliedState) -> Hello {
        let Identity { gateway, boot_id, ports } = self.identity.clone();
        Hello {
            oldest_version: VERSION,
            newest_version: VERSION,
            gateway,
            software: env!("CARGO_PKG_VERSION").to_owned(),
            capabilities: CAPABILITIES.iter().map(|name| (*name).to_owned()).collect(),
            boot_id,
            catalog: applied.catalog,
            generation: applied.generation,
            ports,
            digest: applied.digest,
        }
    }

    async fn converse(
        &mut self,
        inbox: &mut Streaming<ToGateway>,
        outbox: &mpsc::Sender<FromGateway>,
        welcome: &Welcome,
    ) -> End {
        let mut assembler = Assembler::default();
        let mut applying: Option<(u64, oneshot::Receiver<Outcome>)> = None;
        let mut ticks = interval(status_interval(welcome));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let views = self.reader.views();
        loop {
            tokio::select! {
                // One update at a time: what control sends meanwhile waits there.
                message = inbox.message(), if applying.is_none() => match message {
                    Ok(Some(message)) => match self.take(&mut assembler, welcome, message).await {
                        Ok(work) => applying = work,
                        Err(end) => return end,
                    },
                    Ok(None) => return End::Broken("control ended the stream".to_owned()),
                    Err(status) => return ended(&status),
                },
                outcome = outcome(&mut applying) => {
                    let Some(message) = outcome else { return stopping() };
                    if outbox.send(FromGateway { message: Some(message) }).await.is_err() {
                        // The stream says why.
                        return last_word(inbox).await;
                    }
                }
                _ = ticks.tick() => self.reader.due(),
                () = views.changed() => self.reader.views_changed(),
                () = tokio::task::yield_now(), if self.reader.is_reading() => self.reader.read_slice(),
                room = outbox.reserve(), if self.reader.has_something() => match room {
                    Ok(room) => room.send(FromGateway { message: Some(Said::Status(self.reader.take())) }),
                    Err(_) => return last_word(inbox).await,
                },
            }
        }
    }

    /// Takes one message; an update that it completes is given to the applier.
    async fn take(
        &self,
        assembler: &mut Assembler,
        welcome: &Welcome,
        message: ToGateway,
    ) -> Result<Option<(u64, oneshot::Receiver<Outcome>)>, End> {
        let update = match message.message {
            Some(Heard::Update(update)) => update,
            Some(Heard::Welcome(_)) => return Err(End::Refused("control said Welcome twice".to_owned())),
            // A message that a later version may know.
            None => return Ok(None),
        };
        let Update { generation, .. } = update;
        let update = match assembler.add(update) {
            Ok(Some(update)) => update,
            Ok(None) => return Ok(None),
            Err(error) => return Err(End::Refused(error.to_string())),
        };
        let (outcome, from) = oneshot::channel();
        let work = Work { catalog: welcome.catalog.clone(), update, outcome };
        self.work.send(work).await.map_err(|_| stopping())?;
        Ok(Some((generation, from)))
    }
}

/// Opens the stream and waits for the Welcome.
async fn open(
    client: &mut proto::push_client::PushClient<tonic::transport::Channel>,
    request: Request<ReceiverStream<FromGateway>>,
) -> Result<(Streaming<ToGateway>, Welcome), End> {
    let response = client.stream(request).await.map_err(|status| ended(&status))?;
    let mut inbox = response.into_inner();
    match inbox.message().await {
        Ok(Some(ToGateway { message: Some(Heard::Welcome(welcome)) })) => Ok((inbox, welcome)),
        Ok(Some(_)) => Err(End::Refused("control's first message is no Welcome".to_owned())),
        Ok(None) => Err(End::Broken("control ended the stream before its Welcome".to_owned())),
        Err(status) => Err(ended(&status)),
    }
}

/// What is to be said of the update that is being applied; for ever, if there is none. May be dropped and called again.
async fn outcome(applying: &mut Option<(u64, oneshot::Receiver<Outcome>)>) -> Option<Said> {
    let Some((generation, outcome)) = applying else {
        return std::future::pending().await;
    };
    let generation = *generation;
    let outcome = outcome.await;
    *applying = None;
    match outcome {
        Ok(Outcome::Applied) => Some(Said::Applied(proto::Applied { generation })),
        Ok(Outcome::Refused(reasons)) => {
            Some(Said::Refused(proto::Refused { generation, reasons, ..proto::Refused::default() }))
        }
        Ok(Outcome::Stopping) | Err(_) => None,
    }
}

/// Why control takes nothing any more.
async fn last_word(inbox: &mut Streaming<ToGateway>) -> End {
    let read = async {
        loop {
            match inbox.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return End::Broken("control ended the stream".to_owned()),
                Err(status) => return ended(&status),
            }
        }
    };
    timeout(WELCOME, read).await.unwrap_or_else(|_| End::Broken("control takes nothing any more".to_owned()))
}

fn ended(status: &Status) -> End {
    let said = broken(status);
    let text = format!("{said} ({})", code(status.code()));
    match status.code() {
        Code::Unauthenticated
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::Unimplemented
        | Code::InvalidArgument => End::Refused(text),
        _ => End::Broken(text),
    }
}

/// The code in the words of the protocol.
fn code(code: Code) -> &'static str {
    code.description()
}

fn stopping() -> End {
    End::Broken("the gateway is stopping".to_owned())
}

fn status_interval(welcome: &Welcome) -> Duration {
    let (shortest, longest, default) = STATUS;
    match welcome.status_interval_milliseconds {
        0 => default,
        milliseconds => Duration::from_millis(milliseconds.into()).clamp(shortest, longest),
    }
}
