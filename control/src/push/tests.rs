//! Control and gateways over real sockets; the gateways are made of the generated client.

mod fake;
mod size;
mod stampede;
mod world;

use std::time::Duration;

use postern_push::proto;
use postern_tables::{Resource, ResourceKind};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

use crate::catalog::model::{EndpointState, Kind};
use fake::{Fake, endpoints_of};
use world::World;

/// So long nothing may happen that must not.
const QUIET: Duration = Duration::from_millis(300);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_gets_everything_and_then_what_changes() {
    let world = World::with_gateways(&["gw1"]).await;
    let mut gateway = world.gateway("gw1").await;
    let first = gateway.update().await;
    assert!(first.change.full);
    let kinds: Vec<ResourceKind> = first.change.changed.iter().map(Resource::kind).collect();
    assert!(!kinds.contains(&ResourceKind::Service), "no endpoint needs it: {kinds:?}");
    assert_eq!(kinds.iter().filter(|kind| **kind == ResourceKind::Attachment).count(), 2);
    gateway.apply(first).await;

    let endpoint = world.make_endpoint("e1");
    let delta = gateway.update().await;
    assert!(!delta.change.full);
    let kinds: Vec<ResourceKind> = delta.change.changed.iter().map(Resource::kind).collect();
    let all = [
        ResourceKind::SnatPool,
        ResourceKind::TargetGroup,
        ResourceKind::LoadBalancer,
        ResourceKind::Service,
        ResourceKind::Endpoint,
    ];
    assert_eq!(kinds, all);
    assert!(delta.generation > gateway.generation);
    assert_eq!(world.state_of(&endpoint), EndpointState::Pending);
    gateway.apply(delta).await;
    world.until_state(&endpoint, EndpointState::Available).await;
    assert!(gateway.has.values().any(|resource| resource.name() == "shop/pool"));

    world.catalog.delete(&world.consumer, Kind::Endpoint, &endpoint, None).unwrap();
    let delta = gateway.update().await;
    assert_eq!((delta.change.changed.len(), delta.change.removed.len()), (0, 5), "{:?}", delta.change);
    assert_eq!(world.state_of(&endpoint), EndpointState::Deleting);
    gateway.apply(delta).await;
    world.until_state(&endpoint, EndpointState::Deleted).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_while_an_update_is_under_way_are_merged() {
    let world = World::with_gateways(&["gw1"]).await;
    let mut gateway = world.gateway("gw1").await;
    let first = gateway.update().await;
    for number in 0..20 {
        world.make_endpoint(&format!("e{number}"));
    }
    assert!(gateway.nothing_within(QUIET).await, "one update at a time");
    gateway.apply(first).await;
    let mut updates = 0;
    while endpoints_of(&gateway).len() < 20 {
        let update = gateway.update().await;
        gateway.apply(update).await;
        updates += 1;
    }
    assert!(updates <= 3, "{updates} updates");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_gateway_refuses_fails_and_is_tried_again_after_a_change() {
    let world = World::with_gateways(&["gw1"]).await;
    let mut gateway = world.gateway("gw1").await;
    let first = gateway.update().await;
    gateway.apply(first).await;
    let endpoint = world.make_endpoint("e1");
    let update = gateway.update().await;
    gateway.refuse(&update, "no room").await;
    world.until_state(&endpoint, EndpointState::Failed).await;
    assert!(gateway.nothing_within(QUIET).await, "nothing has changed");
    assert_eq!(world.status_of("gw1").refused.as_deref().map(|text| text.contains("no room")), Some(true));
    let other = world.make_endpoint("e2");
    while world.state_of(&endpoint) != EndpointState::Available || world.state_of(&other) != EndpointState::Available {
        if let Some(update) = gateway.update_within(Duration::from_millis(200)).await {
            gateway.apply(update).await;
        }
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_gateway_cannot_have_is_found_before_it_is_sent() {
    let world = World::with_gateways(&["gw1"]).await;
    let ports = |hello: &mut proto::Hello| hello.ports = vec!["eth9".to_owned()];
    let mut gateway = Fake::try_connect(&world, "gw1", Some(&world.token), ports).await.unwrap();
    let first = gateway.update().await;
    assert!(first.change.changed.iter().all(|resource| resource.kind() == ResourceKind::Vpc), "{:?}", first.change);
    gateway.apply(first).await;
    let endpoint = world.make_endpoint("e1");
    gateway.apply_until(|| world.state_of(&endpoint) == EndpointState::Failed).await;
    assert!(endpoints_of(&gateway).is_empty());
    let told = || world.status_of("gw1").refused.is_some_and(|text| text.contains("eth1"));
    world.until("the operator is told why", told).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_gateway_lets_go_before_the_next_one_gets_it() {
    let world = World::with_gateways(&["gw1", "gw2"]).await;
    let mut gateways = vec![world.gateway("gw1").await, world.gateway("gw2").await];
    for gateway in &mut gateways {
        let first = gateway.update().await;
        gateway.apply(first).await;
    }
    let endpoint = world.make_endpoint("e1");
    while world.state_of(&endpoint) != EndpointState::Available {
        for gateway in &mut gateways {
            if let Some(update) = gateway.update_within(Duration::from_millis(100)).await {
                gateway.apply(update).await;
            }
        }
    }
    let from = gateways.iter().position(|gateway| !endpoints_of(gateway).is_empty()).unwrap();
    assert!(endpoints_of(&gateways[1 - from]).is_empty(), "one holder");
    world.drain(&gateways[from].name);
    let release = gateways[from].update().await;
    assert!(release.change.removed.iter().any(|key| key.name == endpoint), "{:?}", release.change);
    // However long it takes.
    while let Some(update) = gateways[1 - from].update_within(QUIET).await {
        let has = update.change.changed.iter().any(|resource| resource.name() == endpoint);
        assert!(!has, "the old holder has not let go");
        gateways[1 - from].apply(update).await;
    }
    gateways[from].apply(release).await;
    while endpoints_of(&gateways[1 - from]).is_empty() {
        let update = gateways[1 - from].update().await;
        gateways[1 - from].apply(update).await;
    }
    assert!(endpoints_of(&gateways[from]).is_empty());
    assert_eq!(world.holder_of(&endpoint), Some(world.gateway_id(&gateways[1 - from].name)));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_moves_from_a_gateway_that_is_not_connected() {
    let world = World::with_gateways(&["gw1"]).await;
    let mut gateway = world.gateway("gw1").await;
    let endpoint = world.make_endpoint("e1");
    while world.state_of(&endpoint) != EndpointState::Available {
        if let Some(update) = gateway.update_within(Duration::from_millis(100)).await {
            gateway.apply(update).await;
        }
    }
    drop(gateway);
    world.until("gw1 is seen as gone", || !world.status_of("gw1").connected).await;
    world.make_gateway("gw2");
    world.drain("gw1");
    let mut other = world.gateway("gw2").await;
    let first = other.update().await;
    other.apply(first).await;
    assert!(
        other
            .update_within(QUIET)
            .await
            .is_none_or(|update| { !update.change.changed.iter().any(|resource| resource.name() == endpoint) })
    );
    assert_eq!(world.holder_of(&endpoint), Some(world.gateway_id("gw1")));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_never_answers_holds_up_no_other() {
    let world = World::with_gateways(&["gw1", "gw2"]).await;
    let mut silent = world.gateway("gw1").await;
    silent.update().await;
    let mut quick = world.gateway("gw2").await;
    let first = quick.update().await;
    quick.apply(first).await;
    for number in 0..5 {
        let endpoint = world.make_endpoint_at(&format!("e{number}"), "gw2");
        quick.apply_until(|| world.state_of(&endpoint) == EndpointState::Available).await;
    }
    world
        .until("the silence is told", || {
            world.status_of("gw1").refused.is_some_and(|text| text.contains("not answered"))
        })
        .await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_reads_nothing_holds_up_no_other_and_gets_the_newest_state_at_once_afterwards() {
    const ENDPOINTS: usize = 3000;
    let world = World::with_gateways(&["gw1", "gw2"]).await;
    for number in 0..ENDPOINTS {
        world.make_endpoint_at(&format!("e{number}"), "gw1");
    }
    // Much less room than all its endpoints need; it reads not even that.
    let narrow = world.narrow_channel(16 << 10);
    let mut stuck = Fake::over(narrow, "gw1", Some(&world.token), |_| {}).await.unwrap();
    world.until("it is connected", || world.status_of("gw1").connected).await;
    let mut quick = world.gateway("gw2").await;
    let first = quick.update().await;
    quick.apply(first).await;
    for number in 0..20 {
        let endpoint = world.make_endpoint_at(&format!("q{number}"), "gw2");
        quick.apply_until(|| world.state_of(&endpoint) == EndpointState::Available).await;
    }
    // What changes often meanwhile is kept once.
    for weight in 1..=200 {
        world.weigh_target(weight);
    }
    let told = || world.status_of("gw1").refused.is_some_and(|text| text.contains("not answered"));
    world.until("the silence is told", told).await;
    let weight_of = |gateway: &Fake| {
        gateway.has.values().find_map(|resource| match resource {
            Resource::TargetGroup(group) => group.targets[0].weight,
            _ => None,
        })
    };
    let mut updates = 0;
    while endpoints_of(&stuck).len() < ENDPOINTS || weight_of(&stuck) != Some(200) {
        let update = stuck.update().await;
        stuck.apply(update).await;
        updates += 1;
    }
    // What was under way when it fell silent; its addresses of the pool; and all the rest together.
    assert!(updates <= 4, "{updates} updates");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_refuses_everything_is_asked_again_with_pauses_and_says_why_and_others_go_on() {
    let world = World::with_gateways(&["gw1", "gw2"]).await;
    let mut stubborn = world.gateway("gw1").await;
    let mut quick = world.gateway("gw2").await;
    let first = quick.update().await;
    quick.apply(first).await;
    let why = || world.status_of("gw1").refused.is_some_and(|text| text.contains("the disk is full"));
    for _ in 0..2 {
        let update = stubborn.update().await;
        assert!(update.change.full);
        stubborn.refuse(&update, "the disk is full").await;
        world.until("its status says why", why).await;
        assert!(stubborn.nothing_within(QUIET).await, "it is not asked again at once");
        let endpoint = world.make_endpoint_at(&format!("e{}", update.generation), "gw2");
        // Nothing of gw1 changes by that: its pause goes on.
        quick.apply_until(|| world.state_of(&endpoint) == EndpointState::Available).await;
    }
    // Nothing has changed for it, and it is asked again.
    let update = stubborn.update().await;
    assert!(update.change.full && why(), "{update:?}");
    stubborn.apply(update).await;
    world.until("all is well", || world.status_of("gw1").refused.is_none()).await;
    // The same for a part: only that waits.
    let endpoint = world.make_endpoint_at("part", "gw1");
    let mut refused = 0;
    while world.state_of(&endpoint) != EndpointState::Available {
        let update = stubborn.update().await;
        let part = update.change.changed.iter().any(|resource| resource.name() == endpoint);
        if part && refused < 2 {
            refused += 1;
            stubborn.refuse(&update, "no room").await;
        } else {
            stubborn.apply(update).await;
            let applied = || !part || world.state_of(&endpoint) == EndpointState::Available;
            world.until("it is kept", applied).await;
        }
    }
    assert_eq!(refused, 2);
    world.until("all is well again", || world.status_of("gw1").refused.is_none()).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_two_gateways_see_of_a_target_is_joined_and_one_that_left_is_forgotten() {
    use crate::catalog::model::TargetHealth;
    use proto::Health;
    let world = World::with_gateways(&["gw1", "gw2"]).await;
    let mut gateways = Vec::new();
    for name in ["gw1", "gw2"] {
        let able = |hello: &mut proto::Hello| hello.capabilities = vec!["health-checks".to_owned()];
        let mut gateway = Fake::try_connect(&world, name, Some(&world.token), able).await.unwrap();
        let endpoint = world.make_endpoint_at(&format!("at-{name}"), name);
        gateway.apply_until(|| world.state_of(&endpoint) == EndpointState::Available).await;
        gateways.push(gateway);
    }
    world.check_targets();
    for gateway in &mut gateways {
        while let Some(update) = gateway.update_within(QUIET).await {
            gateway.apply(update).await;
        }
    }
    for (first, second, joined) in [
        (Health::Initial, Health::Unspecified, TargetHealth::Initial),
        (Health::Initial, Health::Unhealthy, TargetHealth::Unhealthy),
        (Health::Healthy, Health::Unhealthy, TargetHealth::Healthy),
        (Health::UnhealthyDraining, Health::Unhealthy, TargetHealth::UnhealthyDraining),
        (Health::Unhealthy, Health::Unhealthy, TargetHealth::Unhealthy),
    ] {
        gateways[0].sees("10.1.0.10", first).await;
        gateways[1].sees("10.1.0.10", second).await;
        let count = 1 + usize::from(second != Health::Unspecified);
        let what = format!("{first:?} and {second:?} are {joined:?}");
        world.until(&what, || world.targets().first().is_some_and(|seen| seen.1 == joined && seen.2 == count)).await;
    }
    // Its flows go on for a while on one gateway; then nobody sees it.
    gateways[0].sees("10.1.0.99", Health::Draining).await;
    world.until("it drains", || world.targets().iter().any(|seen| seen.1 == TargetHealth::Draining)).await;
    gateways[0].sees("10.1.0.99", Health::Unspecified).await;
    world.until("it has drained", || world.targets().len() == 1).await;
    // What a gateway saw goes with it.
    gateways.remove(0);
    world.until("one view is left", || world.targets()[0].2 == 1).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_of_two_gateways_are_summed_once_however_often_they_are_said() {
    let mut world = World::with_gateways(&["gw1", "gw2"]).await;
    let mut first = world.gateway("gw1").await;
    let endpoint = world.make_endpoint_at("e1", "gw1");
    first.apply_until(|| world.state_of(&endpoint) == EndpointState::Available).await;
    let mut second = world.gateway("gw2").await;
    for _ in 0..3 {
        first.used(&endpoint, 1000).await;
        second.used(&endpoint, 50).await;
    }
    world.until("both are counted", || world.bytes() == 1050).await;
    let mut first = first.reconnect(&world).await;
    first.used(&endpoint, 1000).await;
    first.used(&endpoint, 1200).await;
    world.until("what is new is counted", || world.bytes() == 1250).await;
    world.restart().await;
    let mut first = first.reconnect(&world).await;
    first.used(&endpoint, 1200).await;
    let mut second = second.reconnect(&world).await;
    second.used(&endpoint, 60).await;
    world.until("nothing is counted twice", || world.bytes() == 1260).await;
    first.used(&endpoint, 1201).await;
    world.until("and it goes on", || world.bytes() == 1261).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_have_a_stream_is_told_why() {
    let world = World::with_gateways(&["gw1", "gw2"]).await;
    let refusal = world.try_gateway("gw1", |hello| (hello.oldest_version, hello.newest_version) = (7, 9)).await;
    assert_eq!(refusal.code(), Code::FailedPrecondition);
    assert!(refusal.message().contains("control speaks version 1 of the gateway protocol, the gateway 7 to 9"));
    let refusal = world.try_gateway("nobody", |_| {}).await;
    assert_eq!(refusal.code(), Code::NotFound);
    let own = world.token_of("gw1");
    let refusal = Fake::try_connect(&world, "gw2", Some(&own), |_| {}).await.unwrap_err();
    assert_eq!(refusal.code(), Code::PermissionDenied);
    Fake::try_connect(&world, "gw1", Some(&own), |_| {}).await.unwrap();
    let refusal = Fake::try_connect(&world, "gw1", None, |_| {}).await.unwrap_err();
    assert_eq!(refusal.code(), Code::Unauthenticated);
    let refusal = Fake::try_connect(&world, "gw1", Some("postern-made-up"), |_| {}).await.unwrap_err();
    assert_eq!(refusal.code(), Code::Unauthenticated);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_stream_ends_the_older_one_of_the_gateway() {
    let world = World::with_gateways(&["gw1"]).await;
    let mut older = world.gateway("gw1").await;
    older.update().await;
    let mut newer = world.gateway("gw1").await;
    let end = older.end().await;
    assert_eq!(end.code(), Code::Aborted);
    let first = newer.update().await;
    newer.apply(first).await;
    world.until("the newer one is connected", || world.status_of("gw1").connected).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_that_begins_anew_confirms_what_a_gateway_has() {
    let mut world = World::with_gateways(&["gw1"]).await;
    let mut gateway = world.gateway("gw1").await;
    let endpoint = world.make_endpoint("e1");
    gateway.apply_until(|| world.state_of(&endpoint) == EndpointState::Available).await;
    let holder = world.holder_of(&endpoint);
    world.restart().await;
    assert_eq!(world.holder_of(&endpoint), holder);
    let mut again = gateway.reconnect(&world).await;
    let update = again.update().await;
    assert!(!update.change.full, "it has everything");
    assert_eq!((update.change.changed.len(), update.change.removed.len()), (0, 0));
    assert!(update.generation >= again.generation);
    again.apply(update).await;

    // What it has is not what it should have.
    again.digest[3] ^= 1;
    let mut wrong = again.reconnect(&world).await;
    let update = wrong.update().await;
    assert!(update.change.full);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_gateways_come_back_at_once() {
    let world = World::with_gateways(&[]).await;
    let names: Vec<String> = (0..1000).map(|number| format!("g{number}")).collect();
    for name in &names {
        world.make_bare_gateway(name);
    }
    let mut tasks = Vec::new();
    // Four streams a connection.
    for four in names.chunks(4) {
        let channel = world.channel();
        for name in four {
            let (channel, token, name) = (channel.clone(), world.token.clone(), name.clone());
            tasks.push(tokio::spawn(async move {
                let mut gateway = Fake::over(channel, &name, Some(&token), |_| {}).await.unwrap();
                let update = gateway.update().await;
                gateway.apply(update).await;
                gateway
            }));
        }
    }
    let mut gateways = Vec::new();
    for task in tasks {
        gateways.push(tokio::time::timeout(Duration::from_secs(120), task).await.unwrap().unwrap());
    }
    assert_eq!(gateways.len(), 1000);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noise_on_the_port_does_no_harm() {
    let world = World::with_gateways(&["gw1"]).await;
    let mut state = 0x9e37_79b9_u32;
    let mut random = |count: usize| {
        let next = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        (0..count).map(next).collect::<Vec<u8>>()
    };
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    for round in 0..20 {
        let mut bytes = if round % 2 == 0 { preface.clone() } else { Vec::new() };
        bytes.extend(random(100 * round));
        let mut stream = tokio::net::TcpStream::connect(world.address).await.unwrap();
        let _ = stream.write_all(&bytes).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await;
    }
    // Messages that are none, too large, or out of turn.
    let refusal = world.try_gateway("gw1", |hello| hello.software = "x".repeat(5 << 20)).await;
    assert_eq!(refusal.code(), Code::OutOfRange, "{refusal:?}");
    let mut gateway = world.gateway("gw1").await;
    gateway.say(proto::FromGateway { message: None }).await;
    assert_eq!(gateway.end().await.code(), Code::InvalidArgument);
    let mut gateway = world.gateway("gw1").await;
    let view = proto::TargetView { address: "nowhere".to_owned(), ..Default::default() };
    let status = proto::Status { targets: vec![view], ..Default::default() };
    gateway.say(proto::FromGateway { message: Some(proto::from_gateway::Message::Status(status)) }).await;
    let end = gateway.end().await;
    assert_eq!(
        (end.code(), end.message()),
        (Code::InvalidArgument, "targets.address is \"nowhere\", which is no address")
    );
    let mut gateway = world.gateway("gw1").await;
    let first = gateway.update().await;
    gateway.apply(first).await;
    world.until("it is served as before", || world.status_of("gw1").applied_generation > 0).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_with_plain_targets_has_a_balancer_of_its_own() {
    let world = World::with_gateways(&["gw1"]).await;
    let mut gateway = world.gateway("gw1").await;
    let plain = json!({ "vpc": "shop-net", "snat_pool": "pool", "port": 80, "targets": [{ "address": "10.1.0.11", "port": 8080 }] });
    let spec = json!({ "plain": plain, "allowed_principals": ["*"] });
    let service = world.make(&world.provider, Kind::Service, "plain", spec);
    let endpoint = world.make_endpoint_of("e1", "plain");
    gateway.apply_until(|| world.state_of(&endpoint) == EndpointState::Available).await;
    let named: Vec<ResourceKind> =
        gateway.has.values().filter(|resource| resource.name() == service).map(Resource::kind).collect();
    assert_eq!(named, [ResourceKind::TargetGroup, ResourceKind::LoadBalancer, ResourceKind::Service]);
    world.stop().await;
}
