//! What one change costs among many.

use std::time::{Duration, Instant};

use super::world::World;

/// Prints figures: `cargo test --release -p postern-control -- --ignored --nocapture from_a_change`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints figures, for a quiet machine"]
async fn from_a_change_to_the_update_among_100_000_endpoints() {
    const ENDPOINTS: usize = 100_000;
    let world = World::with_gateways(&["gw1"]).await;
    let since = Instant::now();
    for number in 0..ENDPOINTS {
        world.make_endpoint(&format!("e{number}"));
    }
    println!("{ENDPOINTS} endpoints made in {:.1?}", since.elapsed());
    let mut gateway = world.gateway("gw1").await;
    let since = Instant::now();
    let mut updates = 0;
    while super::endpoints_of(&gateway).len() < ENDPOINTS {
        let update = gateway.update_within(Duration::from_secs(600)).await.expect("an update comes");
        updates += 1;
        gateway.apply(update).await;
    }
    println!("all placed and sent in {:.1?}, {updates} updates", since.elapsed());
    while let Some(update) = gateway.update_within(Duration::from_secs(20)).await {
        gateway.apply(update).await;
    }
    let mut times = Vec::new();
    for number in 0..20 {
        let since = Instant::now();
        let id = world.make_endpoint(&format!("more{number}"));
        let made = since.elapsed();
        let update = gateway.update_within(Duration::from_secs(600)).await.expect("an update comes");
        times.push((since.elapsed().checked_sub(made).unwrap_or_default(), made));
        assert!(update.change.changed.iter().any(|resource| resource.name() == id));
        gateway.apply(update).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    times.sort();
    println!(
        "from an endpoint in the catalog to its update: median {:?}, most {:?}",
        times[times.len() / 2],
        times.last()
    );
    world.stop().await;
}
