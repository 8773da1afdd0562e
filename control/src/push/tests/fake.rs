//! A gateway that only talks.

use std::collections::BTreeMap;
use std::time::Duration;

use postern_push::proto::push_client::PushClient;
use postern_push::proto::{
    Applied, EndpointUsage, FromGateway, Health, Hello, Key, Refused, Status, TargetView, ToGateway, from_gateway,
    to_gateway,
};
use postern_push::{Assembled, Assembler, VERSION};
use postern_tables::{Resource, ResourceKey, ResourceKind};
use tokio::sync::mpsc;
use tonic::transport::Channel;
use tonic::{Request, Streaming};

use super::world::World;

/// A busy machine may be slow.
const LONG: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Fake {
    pub(super) name: String,
    outgoing: mpsc::Sender<FromGateway>,
    incoming: Streaming<ToGateway>,
    assembler: Assembler,
    pub(super) catalog: String,
    pub(super) generation: u64,
    pub(super) digest: Vec<u8>,
    pub(super) has: BTreeMap<ResourceKey, Resource>,
}

impl Fake {
    pub(super) async fn try_connect(
        world: &World,
        name: &str,
        token: Option<&str>,
        change: impl FnOnce(&mut Hello),
    ) -> Result<Self, tonic::Status> {
        Self::over(world.channel(), name, token, change).await
    }

    pub(super) async fn over(
        channel: Channel,
        name: &str,
        token: Option<&str>,
        change: impl FnOnce(&mut Hello),
    ) -> Result<Self, tonic::Status> {
        let (outgoing, receiver) = mpsc::channel::<FromGateway>(4);
        let stream = futures_util::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|message| (message, receiver))
        });
        let mut hello = Hello {
            oldest_version: VERSION,
            newest_version: VERSION,
            gateway: name.to_owned(),
            software: "test".to_owned(),
            boot_id: "boot".to_owned(),
            ..Hello::default()
        };
        change(&mut hello);
        outgoing.send(FromGateway { message: Some(from_gateway::Message::Hello(hello)) }).await.unwrap();
        let mut request = Request::new(Box::pin(stream));
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        let mut client = PushClient::new(channel);
        let response = tokio::time::timeout(LONG, client.stream(request)).await.expect("control answers")?;
        let mut incoming = response.into_inner();
        let first = tokio::time::timeout(LONG, incoming.message()).await.expect("control answers")?;
        let Some(to_gateway::Message::Welcome(welcome)) = first.and_then(|first| first.message) else {
            panic!("the first message is a Welcome");
        };
        assert_eq!(welcome.version, VERSION);
        Ok(Self {
            name: name.to_owned(),
            outgoing,
            incoming,
            assembler: Assembler::default(),
            catalog: welcome.catalog,
            generation: 0,
            digest: Vec::new(),
            has: BTreeMap::new(),
        })
    }

    /// A new stream of the same gateway, which says what it has.
    pub(super) async fn reconnect(self, world: &World) -> Self {
        let Self { name, catalog, generation, digest, has, .. } = self;
        let hello = |hello: &mut Hello| {
            (hello.catalog, hello.generation, hello.digest) = (catalog, generation, digest.clone());
        };
        let fresh = Self::try_connect(world, &name, Some(&world.token), hello).await.unwrap();
        Self { generation, digest, has, ..fresh }
    }

    /// The next update, not applied yet.
    pub(super) async fn update(&mut self) -> Assembled {
        self.update_within(LONG).await.expect("an update comes")
    }

    pub(super) async fn update_within(&mut self, time: Duration) -> Option<Assembled> {
        loop {
            let message = tokio::time::timeout(time, self.incoming.message()).await.ok()?;
            let message = message.expect("the stream goes on").expect("the stream goes on");
            let Some(to_gateway::Message::Update(part)) = message.message else { panic!("a second Welcome") };
            if let Some(update) = self.assembler.add(part).unwrap() {
                return Some(update);
            }
        }
    }

    pub(super) async fn nothing_within(&mut self, time: Duration) -> bool {
        self.update_within(time).await.is_none()
    }

    /// How the stream ends.
    pub(super) async fn end(&mut self) -> tonic::Status {
        loop {
            match tokio::time::timeout(LONG, self.incoming.message()).await.expect("the stream ends") {
                Ok(Some(_)) => {}
                Ok(None) => return tonic::Status::ok("ended"),
                Err(status) => return status,
            }
        }
    }

    pub(super) async fn apply(&mut self, update: Assembled) {
        if update.change.full {
            self.has.clear();
        }
        for key in &update.change.removed {
            self.has.remove(key);
        }
        self.has.extend(update.change.changed.into_iter().map(|resource| (resource.key(), resource)));
        (self.generation, self.digest) = (update.generation, update.digest);
        let applied = Applied { generation: update.generation };
        self.say(FromGateway { message: Some(from_gateway::Message::Applied(applied)) }).await;
    }

    /// Applies what comes until something is so.
    pub(super) async fn apply_until(&mut self, is: impl Fn() -> bool) {
        let since = std::time::Instant::now();
        while !is() {
            assert!(since.elapsed() < LONG, "it does not come to be");
            if let Some(update) = self.update_within(Duration::from_millis(50)).await {
                self.apply(update).await;
            }
        }
    }

    pub(super) async fn refuse(&mut self, update: &Assembled, reason: &str) {
        let resources = Vec::<Key>::new();
        let refused = Refused { generation: update.generation, reasons: vec![reason.to_owned()], resources };
        self.say(FromGateway { message: Some(from_gateway::Message::Refused(refused)) }).await;
    }

    /// Tells what it sees of a target of the group "shop/api".
    pub(super) async fn sees(&mut self, address: &str, health: Health) {
        let view = TargetView {
            target_group: "shop/api".to_owned(),
            address: address.to_owned(),
            port: 8443,
            health: health.into(),
            ..TargetView::default()
        };
        let status = Status { targets: vec![view], ..Status::default() };
        self.say(FromGateway { message: Some(from_gateway::Message::Status(status)) }).await;
    }

    /// Tells how many bytes an endpoint has had in this life of the gateway.
    pub(super) async fn used(&mut self, endpoint: &str, bytes: u64) {
        let usage = EndpointUsage { endpoint: endpoint.to_owned(), bytes, ..EndpointUsage::default() };
        let status = Status { endpoints: vec![usage], ..Status::default() };
        self.say(FromGateway { message: Some(from_gateway::Message::Status(status)) }).await;
    }

    pub(super) async fn say(&mut self, message: FromGateway) {
        self.outgoing.send(message).await.expect("the stream is open");
    }
}

pub(super) fn endpoints_of(gateway: &Fake) -> Vec<String> {
    let endpoints = gateway.has.keys().filter(|key| key.kind == ResourceKind::Endpoint);
    endpoints.map(|key| key.name.clone()).collect()
}
