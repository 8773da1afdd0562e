//! Many gateways that want everything at once.

use std::time::{Duration, Instant};

use super::fake::Fake;
use super::world::World;
use crate::catalog::model::EndpointState;
use crate::push::Settings;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn few_gateways_get_everything_at_a_time_and_hold_up_no_other() {
    let world = World::with_gateways(&["gw1"]).await;
    let mut quick = world.gateway("gw1").await;
    let first = quick.update().await;
    quick.apply(first).await;

    let most = Settings::default().full_at_once;
    let (mut served, mut waiting): (Vec<(Fake, _)>, Vec<Fake>) = (Vec::new(), Vec::new());
    for number in 0..most + 4 {
        let name = format!("g{number}");
        world.make_bare_gateway(&name);
        waiting.push(world.gateway(&name).await);
    }
    // None of these applies what it gets.
    let since = Instant::now();
    while served.len() < most {
        assert!(since.elapsed() < Duration::from_secs(120), "{} of {most} are served", served.len());
        for mut gateway in std::mem::take(&mut waiting) {
            match gateway.update_within(Duration::from_millis(20)).await {
                Some(update) => served.push((gateway, update)),
                None => waiting.push(gateway),
            }
        }
    }
    assert_eq!((served.len(), waiting.len()), (most, 4));

    // One that needs no more than a change gets it meanwhile.
    let endpoint = world.make_endpoint("e1");
    quick.apply_until(|| world.state_of(&endpoint) == EndpointState::Available).await;
    for gateway in &mut waiting {
        assert!(gateway.nothing_within(Duration::from_millis(50)).await, "the bound does not hold");
    }

    // Each that is done makes room for one.
    for (mut done, update) in served.drain(..waiting.len()) {
        done.apply(update).await;
    }
    for gateway in &mut waiting {
        assert!(gateway.update().await.change.full);
    }
    world.stop().await;
}
