//! Listings of flows, read from workers slice by slice. Workers fill slices when they have nothing better to do; a reader
//! that is slow or gone costs them nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use postern_forwarding::FlowView;
use postern_tables::Snapshot;
use postern_tables::snapshot::EndpointIndex;
use postern_wire::parse::PROTOCOL_TCP;
use tokio::sync::{Mutex, mpsc};

use super::report::FlowReport;
use super::{FLOWS, FlowFilter, FlowsEnd, collect};
use crate::link::{Shared, WorkerLink};

/// A worker that gives no slice for so long is passed over.
const PATIENCE: Duration = Duration::from_secs(2);
/// Pause while a worker fills slices.
const PAUSE: Duration = Duration::from_millis(1);

/// Reads listings, one at a time.
#[derive(Debug)]
pub struct FlowReader {
    shared: Arc<Shared>,
    turn: Mutex<()>,
    listings: AtomicU64,
}

impl FlowReader {
    /// A reader of the workers' flows.
    #[must_use]
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, turn: Mutex::new(()), listings: AtomicU64::new(0) }
    }

    /// Reads flows that pass `filter` and sends them, a slice at a time, until nobody takes them.
    pub async fn read(&self, filter: &FlowFilter, to: mpsc::Sender<Vec<FlowReport>>) -> FlowsEnd {
        let _turn = self.turn.lock().await;
        let mut end = FlowsEnd { flows: 0, complete: true };
        for worker in 0..self.shared.links.len() {
            let link = &self.shared.links[worker];
            let listing = self.listings.fetch_add(1, Ordering::Relaxed) + 1;
            link.listing.store(listing, Ordering::Release);
            end.complete &= self.read_worker(worker, listing, filter, &mut end.flows, &to).await;
            link.listing.store(0, Ordering::Release);
        }
        end
    }

    /// True if all flows of the worker were read.
    async fn read_worker(
        &self,
        worker: usize,
        listing: u64,
        filter: &FlowFilter,
        read: &mut u64,
        to: &mpsc::Sender<Vec<FlowReport>>,
    ) -> bool {
        let link = &self.shared.links[worker];
        let snapshot = self.shared.tables.load();
        let mut last_slice = Instant::now();
        while last_slice.elapsed() < PATIENCE {
            link.wake.wake();
            tokio::time::sleep(PAUSE).await;
            while let Some(slice) = link.slices.pop() {
                last_slice = Instant::now();
                let (current, last) = (slice.listing == listing, slice.last);
                let views = slice.views.iter().filter(|_| current);
                let mut flows: Vec<_> =
                    views.map(|view| report(&snapshot, worker, view)).filter(|flow| passes(flow, filter)).collect();
                give_back(link, slice.views);
                let room = usize::try_from(filter.limit.unwrap_or(FLOWS) - *read).unwrap_or(usize::MAX);
                let cut = flows.len() > room;
                flows.truncate(room);
                *read += flows.len() as u64;
                if !flows.is_empty() && to.send(flows).await.is_err() || cut {
                    return false;
                }
                if current && last {
                    return true;
                }
            }
        }
        false
    }
}

fn give_back(link: &WorkerLink, mut views: Vec<FlowView>) {
    views.clear();
    let pushed = link.free_slices.push(views);
    debug_assert!(pushed.is_ok(), "there are no more slices than places");
}

fn passes(flow: &FlowReport, filter: &FlowFilter) -> bool {
    filter.endpoint.as_ref().is_none_or(|endpoint| flow.endpoint == *endpoint)
        && filter.client.is_none_or(|client| flow.client.ip() == client)
}

fn report(snapshot: &Snapshot, worker: usize, view: &FlowView) -> FlowReport {
    let endpoint = snapshot.endpoint(EndpointIndex(view.endpoint));
    // Another endpoint may hold the index since.
    let endpoint = endpoint.filter(|endpoint| endpoint.address == view.forward.destination());
    let attachment = snapshot.attachments.get(usize::from(view.forward.attachment().0));
    FlowReport {
        protocol: if view.forward.protocol() == PROTOCOL_TCP { "tcp" } else { "udp" }.to_owned(),
        vpc: attachment.map(|attachment| collect::vpc_id(snapshot, attachment.vpc)).unwrap_or_default(),
        client: view.client(),
        endpoint: endpoint.map(|endpoint| endpoint.id.to_string()).unwrap_or_default(),
        service: view.service(),
        snat: view.snat(),
        target: view.target_socket(),
        state: view.state.to_owned(),
        age_seconds: view.age_seconds,
        idle_seconds: view.idle_seconds,
        packets_forward: view.forward_count.0,
        bytes_forward: view.forward_count.1,
        packets_reverse: view.reverse_count.0,
        bytes_reverse: view.reverse_count.1,
        worker,
    }
}
