//! Half-open flows in the order in which they came, so that the oldest goes first when there are too many.
//!
//! A ring of fixed size, written once by each new TCP flow. Flows that left the half-open state stay in it until their turn comes:
//! an entry counts only if its record is half open then, be it another flow's by now. An entry that is overwritten before
//! its flow is judged leaves that flow to its own timer.

/// Entries looked at for one that counts.
const LOOK: u64 = 64;

/// How many half-open flows of an endpoint there are, and from where on in the ring they may be.
#[derive(Clone, Copy, Debug, Default)]
struct OfEndpoint {
    count: u32,
    from: u64,
}

/// The half-open flows of a worker.
#[derive(Debug)]
pub struct HalfOpen {
    /// Numbers of records.
    ring: Box<[u32]>,
    /// Entries ever written; the ring has the last ones.
    written: u64,
    /// Entries that were judged.
    judged: u64,
    count: u32,
    endpoints: Box<[OfEndpoint]>,
}

impl HalfOpen {
    /// Most half-open flows of a worker with so many flows: the largest power of two that is at most an eighth of them, and
    /// at least 64.
    #[must_use]
    pub const fn limit(flows: u32) -> u32 {
        let share = flows / 8;
        if share < 64 { 64 } else { 1 << share.ilog2() }
    }

    /// Room for the half-open flows of a worker with so many flows and endpoint addresses.
    #[must_use]
    pub fn new(flows: u32, endpoints: usize) -> Self {
        Self {
            ring: vec![0; Self::limit(flows) as usize].into_boxed_slice(),
            written: 0,
            judged: 0,
            count: 0,
            endpoints: vec![OfEndpoint::default(); endpoints].into_boxed_slice(),
        }
    }

    /// How many there are.
    #[must_use]
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// Whether another one of any endpoint is too many.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.count >= self.ring.len() as u32
    }

    /// Whether another one of an endpoint is too many: the worker may have [`Self::limit`], one endpoint half of that.
    #[inline(always)]
    #[must_use]
    pub fn is_full_for(&self, endpoint: u32) -> bool {
        let most = self.ring.len() as u32;
        let of_endpoint = self.endpoints.get(endpoint as usize).map_or(0, |of_endpoint| of_endpoint.count);
        self.count >= most || of_endpoint >= most / 2
    }

    /// A flow has become half open.
    #[inline(always)]
    pub fn enter(&mut self, flow: u32, endpoint: u32) {
        let mask = self.ring.len() - 1;
        self.ring[self.written as usize & mask] = flow;
        self.written += 1;
        self.count += 1;
        if let Some(of_endpoint) = self.endpoints.get_mut(endpoint as usize) {
            of_endpoint.count += 1;
        }
    }

    /// A flow is half open no more.
    #[inline]
    pub fn leave(&mut self, endpoint: u32) {
        self.count -= 1;
        if let Some(of_endpoint) = self.endpoints.get_mut(endpoint as usize) {
            of_endpoint.count -= 1;
        }
    }

    /// The oldest half-open flow that must go for another of an endpoint: of the endpoint itself where it has its share, else
    /// of all. `is_half_open` says whether a record's flow is, and of which endpoint. Each call looks at few
    /// entries: where none of those counts, `None`, and the next call goes on behind them.
    #[must_use]
    pub fn oldest(&mut self, endpoint: u32, is_half_open: impl Fn(u32) -> Option<u32>) -> Option<u32> {
        let first = self.written.saturating_sub(self.ring.len() as u64);
        let share = self.ring.len() as u32 / 2;
        let mask = self.ring.len() - 1;
        let of_endpoint = self.endpoints.get_mut(endpoint as usize).filter(|of_endpoint| of_endpoint.count >= share);
        let own = of_endpoint.is_some();
        let from = of_endpoint.map_or(&mut self.judged, |of_endpoint| &mut of_endpoint.from);
        *from = (*from).max(first);
        for _ in 0..LOOK.min(self.written - *from) {
            let entry = self.ring[*from as usize & mask];
            *from += 1;
            if let Some(of) = is_half_open(entry)
                && (!own || of == endpoint)
            {
                return Some(entry);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn half_open_flows_have_an_eighth_of_the_table_and_an_endpoint_half_of_that() {
        assert_eq!([100, 1024, 80_000, 1 << 20].map(HalfOpen::limit), [64, 128, 8192, 1 << 17]);
        let mut half_open = HalfOpen::new(2048, 4);
        for flow in 0..128 {
            assert!(!half_open.is_full_for(0));
            half_open.enter(flow, 0);
        }
        assert!(half_open.is_full_for(0) && !half_open.is_full_for(1) && !half_open.is_full());
        (128..256).for_each(|flow| half_open.enter(flow, flow % 3 + 1));
        assert!(half_open.is_full() && (0..4).all(|endpoint| half_open.is_full_for(endpoint)));
        half_open.leave(2);
        assert!(!half_open.is_full_for(2) && half_open.is_full_for(0));
    }

    #[test]
    fn the_oldest_half_open_flow_goes_first_and_none_that_has_completed() {
        let mut half_open = HalfOpen::new(2048, 2);
        let mut live: HashMap<u32, u32> = HashMap::new();
        for flow in 0..200u32 {
            let endpoint = u32::from(flow % 10 == 0);
            half_open.enter(flow, endpoint);
            live.insert(flow, endpoint);
        }
        // Every third completes.
        for flow in (0..200).step_by(3) {
            half_open.leave(live.remove(&flow).unwrap());
        }
        let mut gone = Vec::new();
        for _ in 0..1000 {
            let found = half_open.oldest(1, |flow| live.get(&flow).copied());
            let Some(flow) = found else { continue };
            half_open.leave(live.remove(&flow).unwrap());
            gone.push(flow);
        }
        let wanted: Vec<u32> = (0..200).filter(|flow| flow % 3 != 0).collect();
        assert_eq!(gone, wanted);
        assert_eq!(half_open.count(), 0);
    }

    #[test]
    fn an_endpoint_with_its_share_of_half_open_flows_gives_up_its_own() {
        let mut half_open = HalfOpen::new(2048, 2);
        // The other endpoint's are older.
        (0..100).for_each(|flow| half_open.enter(flow, 0));
        (100..228).for_each(|flow| half_open.enter(flow, 1));
        let mut found = None;
        for _ in 0..4 {
            found = found.or(half_open.oldest(1, |flow| Some(u32::from(flow >= 100))));
        }
        assert_eq!(found, Some(100));
        assert_eq!(half_open.oldest(0, |flow| Some(u32::from(flow >= 100))), Some(0));
    }
}
