//! Placement against a catalog and gateways that are played: what they have is what control gave them, as late as it gets there.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::catalog::model::Role;
use crate::catalog::{self, Caller, Catalog, Code, New, Refusal, Spec};
use crate::store::MemoryStore;

/// An address of an endpoint or pool.
type Held = (String, IpAddr);

fn tenant(name: &str) -> Caller {
    Caller { principal: name.to_owned(), role: Role::Tenant }
}

/// A gateway's tables, as far as addresses go.
#[derive(Debug, Default)]
struct Played {
    connected: bool,
    /// Whether control knows what it has.
    known: bool,
    has: BTreeSet<Held>,
    in_flight: Option<BTreeSet<Held>>,
}

/// A provider with a service, a consumer, and gateways `g0`, `g1`, … in zones `a` and `b` by turns.
struct Fleet {
    catalog: Catalog,
    operator: Caller,
    provider: Caller,
    consumer: Caller,
    placement: Placement,
    /// By id.
    gateways: BTreeMap<String, Played>,
    ids: Vec<String>,
    pool: String,
}

impl Gateways for BTreeMap<String, Played> {
    fn is_connected(&self, gateway: &str) -> bool {
        self.get(gateway).is_some_and(|played| played.connected)
    }

    fn may_hold(&self, gateway: &str, id: &str, address: IpAddr) -> bool {
        self.get(gateway).is_none_or(|played| {
            let key = (id.to_owned(), address);
            !played.known || played.has.contains(&key) || played.in_flight.iter().any(|next| next.contains(&key))
        })
    }
}

impl Fleet {
    fn new(gateways: usize, pool_addresses: usize) -> Self {
        let catalog = Catalog::open(Arc::new(MemoryStore::new()), catalog::Settings::default()).unwrap();
        catalog.begin_with_operator("root").unwrap().unwrap();
        let operator = Caller { principal: "root".to_owned(), role: Role::Operator };
        let mut fleet = Self {
            catalog,
            operator,
            provider: tenant("shop"),
            consumer: tenant("bank"),
            placement: Placement::default(),
            gateways: BTreeMap::new(),
            ids: Vec::new(),
            pool: String::new(),
        };
        for name in ["shop", "bank"] {
            fleet.make(&fleet.operator, Kind::Principal, name, json!({}));
        }
        fleet.make(&fleet.provider, Kind::Vpc, "shop-net", json!({ "prefixes": ["10.1.0.0/16"] }));
        fleet.make(&fleet.consumer, Kind::Vpc, "bank-net", json!({ "prefixes": ["10.64.0.0/10"] }));
        let addresses: Vec<String> = (0..pool_addresses).map(|at| format!("10.1.0.{}", 100 + at)).collect();
        let pool = json!({ "vpc": "shop-net", "addresses": addresses });
        fleet.pool = fleet.make(&fleet.provider, Kind::SnatPool, "pool", pool);
        let targets = json!([{ "address": "10.1.0.10", "port": 8443 }]);
        let group = json!({ "vpc": "shop-net", "snat_pool": "pool", "targets": targets });
        fleet.make(&fleet.provider, Kind::TargetGroup, "web", group);
        let listeners = json!([{ "port": 443, "target_groups": [{ "target_group": "web" }] }]);
        fleet.make(&fleet.provider, Kind::LoadBalancer, "front", json!({ "listeners": listeners }));
        let service = json!({ "load_balancers": ["front"], "allowed_principals": ["*"] });
        fleet.make(&fleet.provider, Kind::Service, "api", service);
        for _ in 0..gateways {
            fleet.add_gateway();
        }
        fleet
    }

    fn make(&self, caller: &Caller, kind: Kind, name: &str, spec: Value) -> String {
        let spec = Spec::from_value(kind, spec).unwrap();
        let new = New { name: Some(name.to_owned()), owner: None, tags: BTreeMap::new(), spec };
        let made = self.catalog.create(caller, new, None);
        made.unwrap_or_else(|refusal| panic!("{kind} {name}: {refusal}")).id().to_owned()
    }

    fn id(&self, caller: &Caller, kind: Kind, name: &str) -> String {
        self.catalog.one(caller, kind, name).unwrap().id().to_owned()
    }

    /// A gateway that is attached to both networks and not connected.
    fn add_gateway(&mut self) -> usize {
        let at = self.ids.len();
        let spec = json!({ "zone": if at.is_multiple_of(2) { "a" } else { "b" } });
        let id = self.make(&self.operator, Kind::Gateway, &format!("g{at}"), spec);
        self.gateways.insert(id.clone(), Played::default());
        self.ids.push(id);
        self.attach(at, true);
        self.attach(at, false);
        at
    }

    fn attach(&self, at: usize, provider: bool) {
        let (caller, vpc, vlan) =
            if provider { (&self.provider, "shop-net", 10) } else { (&self.consumer, "bank-net", 20) };
        let prefix = if provider { "10.1.0.0/16" } else { "10.64.0.0/10" };
        let vpc_id = self.id(caller, Kind::Vpc, vpc);
        let spec =
            json!({ "gateway": self.ids[at], "vpc": vpc_id, "port": "eth1", "vlan": vlan, "prefixes": [prefix] });
        let spec = Spec::from_value(Kind::Attachment, spec).unwrap();
        let new = New { name: Some(format!("g{at}-{vpc}")), owner: None, tags: BTreeMap::new(), spec };
        // It may be there.
        drop(self.catalog.create(&self.operator, new, None));
    }

    /// Takes the attachment to the consumer's network away; refused while it is needed.
    fn detach(&self, at: usize) -> Result<(), Refusal> {
        let name = format!("g{at}-bank-net");
        let found = self.catalog.read().attachments().find(|attachment| attachment.metadata.name == name).cloned();
        let Some(attachment) = found else { return Ok(()) };
        self.catalog.delete(&self.operator, Kind::Attachment, &attachment.metadata.id, None).map(drop)
    }

    fn drain(&self, at: usize, drained: bool) {
        let zone = if at.is_multiple_of(2) { "a" } else { "b" };
        let spec = Spec::from_value(Kind::Gateway, json!({ "zone": zone, "drained": drained })).unwrap();
        self.catalog.replace(&self.operator, Kind::Gateway, &self.ids[at], spec, None, None, None).unwrap();
    }

    fn endpoint(&self, name: &str, addresses: Value) -> String {
        let service = self.id(&self.provider, Kind::Service, "api");
        let spec = json!({ "vpc": "bank-net", "service": service, "addresses": addresses });
        self.make(&self.consumer, Kind::Endpoint, name, spec)
    }

    /// The operator's, with the gateway that is to hold it.
    fn pinned_endpoint(&self, name: &str, at: usize) -> String {
        let (service, vpc) =
            (self.id(&self.provider, Kind::Service, "api"), self.id(&self.consumer, Kind::Vpc, "bank-net"));
        let spec = json!({ "vpc": vpc, "service": service, "addresses": [{ "gateway": self.ids[at] }] });
        let spec = Spec::from_value(Kind::Endpoint, spec).unwrap();
        let owner = Some(self.consumer.principal.clone());
        let new = New { name: Some(name.to_owned()), owner, tags: BTreeMap::new(), spec };
        self.catalog.create(&self.operator, new, None).unwrap().id().to_owned()
    }

    /// Thinks about everything, as often as something came of it, and keeps what was decided.
    fn think(&mut self) {
        for _ in 0..2 {
            let made = {
                let state = self.catalog.read();
                let pools = state.snat_pools().map(|pool| (Kind::SnatPool, pool.metadata.id.clone()));
                let endpoints = state.endpoints().map(|endpoint| (Kind::Endpoint, endpoint.metadata.id.clone()));
                let about: BTreeSet<_> = pools.chain(endpoints).collect();
                self.placement.think(&state, &self.gateways, &about)
            };
            self.catalog.set_placement(made.holders).unwrap();
            self.catalog.endpoints_applied(&made.gone).unwrap();
            for (id, reason) in made.failed {
                self.catalog.endpoint_failed(&id, &reason).unwrap();
            }
        }
    }

    /// What control would give a gateway now.
    fn wanted(&self, gateway: &str) -> BTreeSet<Held> {
        let state = self.catalog.read();
        let attached = |vpc: &str| {
            let mut attachments = state.users_of_kind(vpc, Kind::Attachment).filter_map(|id| state.attachment(id));
            attachments.any(|attachment| attachment.spec.gateway == gateway)
        };
        let mut wanted = BTreeSet::new();
        for endpoint in state.endpoints() {
            let there = has_access(endpoint.status.state) && attached(&endpoint.spec.vpc);
            let held = endpoint.status.addresses.iter().filter(|held| held.gateway.as_deref() == Some(gateway));
            wanted.extend(held.filter(|_| there).map(|held| (endpoint.metadata.id.clone(), held.address)));
        }
        for pool in state.snat_pools().filter(|pool| attached(&pool.spec.vpc)) {
            let held = pool.status.holders.iter().filter(|(_, holder)| *holder == gateway);
            wanted.extend(held.map(|(address, _)| (pool.metadata.id.clone(), *address)));
        }
        wanted.retain(|key| !self.placement.releasing().contains(key));
        wanted
    }

    fn connect(&mut self, at: usize) {
        self.gateways.get_mut(&self.ids[at]).unwrap().connected = true;
    }

    /// The connection breaks; what was under way has come to it, or has not.
    fn disconnect(&mut self, at: usize, arrived: bool) {
        let played = self.gateways.get_mut(&self.ids[at]).unwrap();
        (played.connected, played.known) = (false, false);
        if let Some(next) = played.in_flight.take().filter(|_| arrived) {
            played.has = next;
        }
    }

    fn send(&mut self, at: usize) {
        let wanted = self.wanted(&self.ids[at]);
        let played = self.gateways.get_mut(&self.ids[at]).unwrap();
        if played.connected && played.in_flight.is_none() {
            played.in_flight = Some(wanted);
        }
    }

    fn apply(&mut self, at: usize) {
        let played = self.gateways.get_mut(&self.ids[at]).unwrap();
        if let Some(next) = played.in_flight.take() {
            (played.has, played.known) = (next, true);
            self.placement.after_applied(&self.ids[at]);
        }
    }

    /// Everything that is under way comes to its end.
    fn settle(&mut self) {
        for _ in 0..100 {
            self.think();
            let before: Vec<_> = self.gateways.values().map(|played| (played.has.clone(), played.known)).collect();
            for at in 0..self.ids.len() {
                self.send(at);
                self.apply(at);
            }
            self.think();
            if before.into_iter().eq(self.gateways.values().map(|played| (played.has.clone(), played.known))) {
                return;
            }
        }
        panic!("it does not come to rest");
    }

    fn connect_all(&mut self) {
        (0..self.ids.len()).for_each(|at| self.connect(at));
    }

    /// Who has an address in its tables.
    fn have(&self, id: &str) -> Vec<usize> {
        let has = |at: &usize| self.gateways[&self.ids[*at]].has.iter().any(|(of, _)| of == id);
        (0..self.ids.len()).filter(has).collect()
    }

    fn state_of(&self, endpoint: &str) -> (EndpointState, Option<String>) {
        let state = self.catalog.read();
        let status = &state.endpoint(endpoint).unwrap().status;
        (status.state, status.reason.clone())
    }

    /// Holders of the pool's addresses.
    fn pool_holders(&self) -> Vec<usize> {
        let state = self.catalog.read();
        let holders = state.snat_pool(&self.pool).unwrap().status.holders.values();
        holders.map(|id| self.ids.iter().position(|of| of == id).unwrap()).collect()
    }

    fn each_address_is_in_one_place(&self) -> Result<(), TestCaseError> {
        let mut seen = BTreeMap::new();
        for (gateway, played) in &self.gateways {
            for key in &played.has {
                if let Some(other) = seen.insert(key.clone(), gateway) {
                    return Err(TestCaseError::fail(format!("{key:?} is with {gateway} and {other}")));
                }
            }
        }
        Ok(())
    }

    /// At rest, with all gateways connected.
    fn each_address_is_where_it_may_be(&self) -> Result<(), TestCaseError> {
        let state = self.catalog.read();
        let attached = |vpc: &str, gateway: &str| {
            let mut attachments = state.users_of_kind(vpc, Kind::Attachment).filter_map(|id| state.attachment(id));
            attachments.any(|attachment| attachment.spec.gateway == gateway)
        };
        let pool = state.snat_pool(&self.pool).unwrap();
        let drained = |id: &str| state.gateway(id).unwrap().spec.drained;
        for endpoint in state.endpoints().filter(|endpoint| has_access(endpoint.status.state)) {
            let id = &endpoint.metadata.id;
            for held in &endpoint.status.addresses {
                let reaches =
                    |gateway: &&String| attached(&endpoint.spec.vpc, gateway) && attached(&pool.spec.vpc, gateway);
                let zone =
                    |gateway: &&String| held.zone.is_none() || state.gateway(gateway).unwrap().spec.zone == held.zone;
                let mut may = self.ids.iter().filter(reaches).filter(zone).filter(|id| !drained(id));
                if may.clone().next().is_none() {
                    continue;
                }
                let holder = held.gateway.as_ref();
                prop_assert!(holder.is_some_and(|holder| may.any(|id| id == holder)), "{} is with {:?}", id, holder);
                let has = &self.gateways[holder.unwrap()].has;
                prop_assert!(has.contains(&(id.clone(), held.address)), "its holder does not have it");
            }
        }
        if self.ids.iter().any(|id| attached(&pool.spec.vpc, id) && !drained(id)) {
            for address in &pool.spec.addresses {
                let holder = pool.status.holders.get(address);
                let fits = holder
                    .is_some_and(|id| !drained(id) && self.gateways[id].has.contains(&(self.pool.clone(), *address)));
                prop_assert!(fits, "{} is with {:?}", address, holder);
            }
        }
        Ok(())
    }
}

#[derive(Clone, Debug)]
enum Event {
    Connect(usize),
    Disconnect(usize, bool),
    Send(usize),
    Apply(usize),
    Drain(usize, bool),
    Attach(usize),
    Detach(usize),
    Endpoint(u8, Option<bool>),
    Delete(u8),
    Gateway,
}

fn event() -> impl Strategy<Value = Event> {
    let gateway = 0..4_usize;
    prop_oneof![
        4 => gateway.clone().prop_map(Event::Connect),
        1 => (gateway.clone(), any::<bool>()).prop_map(|(at, arrived)| Event::Disconnect(at, arrived)),
        8 => gateway.clone().prop_map(Event::Send),
        8 => gateway.clone().prop_map(Event::Apply),
        2 => (gateway.clone(), any::<bool>()).prop_map(|(at, drained)| Event::Drain(at, drained)),
        1 => gateway.clone().prop_map(Event::Attach),
        1 => gateway.prop_map(Event::Detach),
        4 => (0..8_u8, prop::option::of(any::<bool>())).prop_map(|(name, zone)| Event::Endpoint(name, zone)),
        1 => (0..8_u8).prop_map(Event::Delete),
        1 => Just(Event::Gateway),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_address_is_ever_in_two_places_and_at_rest_each_is_where_it_may_be(
        events in prop::collection::vec(event(), 1..80),
        pool in 4..8_usize,
    ) {
        let mut fleet = Fleet::new(3, pool);
        for event in events {
            let there = |at: usize| at < fleet.ids.len();
            match event {
                Event::Connect(at) if there(at) => fleet.connect(at),
                Event::Disconnect(at, arrived) if there(at) => fleet.disconnect(at, arrived),
                Event::Send(at) if there(at) => fleet.send(at),
                Event::Apply(at) if there(at) => fleet.apply(at),
                Event::Drain(at, drained) if there(at) => fleet.drain(at, drained),
                Event::Attach(at) if there(at) => fleet.attach(at, false),
                Event::Detach(at) if there(at) => drop(fleet.detach(at)),
                Event::Endpoint(name, zone) => {
                    let zone = zone.map(|first| json!([{ "zone": if first { "a" } else { "b" } }]));
                    let name = format!("e{name}");
                    if fleet.catalog.one(&fleet.consumer, Kind::Endpoint, &name).is_err() {
                        fleet.endpoint(&name, zone.unwrap_or_else(|| json!([])));
                    }
                }
                Event::Delete(name) => {
                    drop(fleet.catalog.delete(&fleet.consumer, Kind::Endpoint, &format!("e{name}"), None));
                }
                Event::Gateway if fleet.ids.len() < 4 => drop(fleet.add_gateway()),
                _ => {}
            }
            fleet.think();
            fleet.each_address_is_in_one_place()?;
        }
        fleet.connect_all();
        fleet.settle();
        fleet.each_address_is_in_one_place()?;
        fleet.each_address_is_where_it_may_be()?;
    }
}

#[test]
fn one_gateway_more_takes_its_share_and_nothing_else_moves() {
    const ADDRESSES: usize = 4000;
    let addresses: Vec<Held> = (0..ADDRESSES)
        .map(|at| (format!("vpce-{at:017x}"), IpAddr::from([10, 64, (at >> 8) as u8, at as u8])))
        .collect();
    let best = |gateways: &[String], (id, address): &Held| {
        gateways.iter().max_by_key(|gateway| weight(gateway, id, *address)).unwrap().clone()
    };
    let mut gateways: Vec<String> = (0..9).map(|at| format!("gw-{at:017x}")).collect();
    let new = "gw-new".to_owned();
    let before: Vec<_> = addresses.iter().map(|held| best(&gateways, held)).collect();
    gateways.push(new.clone());
    let after: Vec<_> = addresses.iter().map(|held| best(&gateways, held)).collect();
    let moved: Vec<_> = before.iter().zip(&after).filter(|(before, after)| before != after).collect();
    assert!(moved.iter().all(|(_, after)| **after == new), "an address moved between gateways that were there");
    // A tenth of them, give or take a quarter of that: five standard deviations.
    assert!((300..=500).contains(&moved.len()), "{} of {ADDRESSES} moved", moved.len());
    for gateway in &gateways {
        let held = after.iter().filter(|holder| *holder == gateway).count();
        assert!((300..=500).contains(&held), "{gateway} holds {held} of {ADDRESSES}");
    }
}

#[test]
fn a_new_gateway_moves_nothing_that_has_a_holder_and_gets_new_addresses() {
    let mut fleet = Fleet::new(2, 4);
    fleet.connect_all();
    let old: Vec<_> = (0..20).map(|at| fleet.endpoint(&format!("e{at}"), json!([]))).collect();
    fleet.settle();
    let holders: Vec<_> = old.iter().map(|id| fleet.have(id)).collect();
    assert!(holders.iter().all(|have| have.len() == 1) && (0..2).all(|at| holders.contains(&vec![at])));
    let new = fleet.add_gateway();
    fleet.connect(new);
    fleet.settle();
    assert_eq!(old.iter().map(|id| fleet.have(id)).collect::<Vec<_>>(), holders);
    // It has an address of the pool only when something needs one there.
    fleet.drain(0, true);
    fleet.settle();
    assert!(old.iter().all(|id| fleet.have(id) == [1] || fleet.have(id) == [2]), "nothing stays on a drained gateway");
    assert!(!fleet.pool_holders().contains(&0));
}

#[test]
fn a_pin_holds_also_on_a_drained_gateway_and_only_there() {
    let mut fleet = Fleet::new(3, 3);
    fleet.connect_all();
    let pinned: Vec<_> = (0..3).map(|at| fleet.pinned_endpoint(&format!("p{at}"), at)).collect();
    let free: Vec<_> = (0..12).map(|at| fleet.endpoint(&format!("e{at}"), json!([]))).collect();
    fleet.settle();
    let where_pinned = |fleet: &Fleet| pinned.iter().map(|id| fleet.have(id)).collect::<Vec<_>>();
    assert_eq!(where_pinned(&fleet), [vec![0], vec![1], vec![2]]);
    // Pins of the pool, as an operator sets them.
    let pool = fleet.catalog.read().snat_pool(&fleet.pool).unwrap().spec.clone();
    let pins: BTreeMap<String, String> =
        pool.addresses.iter().zip(&fleet.ids).map(|(address, id)| (address.to_string(), id.clone())).collect();
    let spec = json!({ "vpc": pool.vpc, "addresses": pool.addresses, "pinned": pins });
    let spec = Spec::from_value(Kind::SnatPool, spec).unwrap();
    fleet.catalog.replace(&fleet.operator, Kind::SnatPool, &fleet.pool, spec, None, None, None).unwrap();
    fleet.settle();
    assert_eq!(fleet.pool_holders(), [0, 1, 2]);
    fleet.drain(0, true);
    fleet.settle();
    assert_eq!(where_pinned(&fleet), [vec![0], vec![1], vec![2]]);
    assert_eq!(fleet.pool_holders(), [0, 1, 2]);
    assert!(free.iter().all(|id| fleet.have(id) != [0] && fleet.have(id).len() == 1));
}

#[test]
fn addresses_of_a_zone_are_held_in_it_or_the_endpoint_says_why_not() {
    let mut fleet = Fleet::new(4, 4);
    fleet.connect_all();
    let both = fleet.endpoint("both", json!([{ "zone": "a" }, { "zone": "b" }]));
    let one = fleet.endpoint("one", json!([{ "zone": "b" }]));
    let none = fleet.endpoint("none", json!([{ "zone": "c" }]));
    fleet.settle();
    let mut zones: Vec<_> = fleet.have(&both).iter().map(|at| at % 2).collect();
    zones.sort_unstable();
    assert_eq!(zones, [0, 1]);
    assert_eq!(fleet.have(&one).iter().map(|at| at % 2).collect::<Vec<_>>(), [1]);
    let (state, reason) = fleet.state_of(&none);
    assert_eq!((state, fleet.have(&none)), (EndpointState::Failed, vec![]));
    assert!(reason.is_some_and(|reason| reason.contains("no gateway of zone c")));
}

#[test]
fn a_pool_with_fewer_addresses_than_gateways_goes_where_endpoints_are_and_what_finds_none_says_so() {
    let mut fleet = Fleet::new(4, 2);
    fleet.connect_all();
    let free: Vec<_> = (0..12).map(|at| fleet.endpoint(&format!("e{at}"), json!([]))).collect();
    fleet.settle();
    let holders: BTreeSet<usize> = fleet.pool_holders().into_iter().collect();
    assert_eq!(holders.len(), 2, "one address each");
    assert!(free.iter().all(|id| fleet.have(id).iter().all(|at| holders.contains(at)) && fleet.have(id).len() == 1));
    // Where an endpoint has to be, an address comes, as long as one is not needed elsewhere.
    let elsewhere: Vec<usize> = (0..4).filter(|at| !holders.contains(at)).collect();
    let third = fleet.pinned_endpoint("third", elsewhere[0]);
    fleet.settle();
    let (state, reason) = fleet.state_of(&third);
    assert_eq!(state, EndpointState::Failed);
    assert!(reason.is_some_and(|reason| reason.contains("SNAT pool pool") && reason.contains("one more")));
    // One more is enough.
    let pool = fleet.catalog.read().snat_pool(&fleet.pool).unwrap().spec.clone();
    let mut addresses = pool.addresses.clone();
    addresses.push("10.1.0.150".parse().unwrap());
    let spec = Spec::from_value(Kind::SnatPool, json!({ "vpc": pool.vpc, "addresses": addresses })).unwrap();
    fleet.catalog.replace(&fleet.provider, Kind::SnatPool, &fleet.pool, spec, None, None, None).unwrap();
    fleet.settle();
    assert_eq!(fleet.have(&third), [elsewhere[0]]);
}

#[test]
fn an_attachment_goes_only_when_nothing_is_held_by_it_any_more_and_nothing_comes_back() {
    let mut fleet = Fleet::new(2, 2);
    fleet.connect_all();
    let ids: Vec<_> = (0..10).map(|at| fleet.endpoint(&format!("e{at}"), json!([]))).collect();
    fleet.settle();
    let held: BTreeSet<_> = ids.iter().filter(|id| fleet.have(id) == [0]).cloned().collect();
    let refusal = fleet.detach(0).unwrap_err();
    assert_eq!((refusal.code, refusal.users.into_iter().collect()), (Code::InUse, held));
    fleet.drain(0, true);
    fleet.settle();
    fleet.detach(0).unwrap();
    fleet.drain(0, false);
    fleet.settle();
    assert!(
        ids.iter().all(|id| fleet.have(id) == [1]),
        "{:?}",
        ids.iter().map(|id| fleet.have(id)).collect::<Vec<_>>()
    );
}

#[test]
fn an_endpoint_whose_service_goes_where_no_gateway_is_fails_with_the_reason_until_one_is_there() {
    let mut fleet = Fleet::new(2, 2);
    fleet.connect_all();
    let endpoint = fleet.endpoint("e", json!([]));
    fleet.settle();
    let holder = fleet.have(&endpoint);
    assert_eq!((holder.len(), fleet.state_of(&endpoint).0), (1, EndpointState::Pending));
    let vpc = fleet.make(&fleet.provider, Kind::Vpc, "far-net", json!({ "prefixes": ["10.3.0.0/16"] }));
    let pool = json!({ "vpc": "far-net", "addresses": ["10.3.0.100", "10.3.0.101"] });
    fleet.make(&fleet.provider, Kind::SnatPool, "far-pool", pool);
    let targets = json!([{ "address": "10.3.0.10", "port": 8443 }]);
    let group = json!({ "vpc": "far-net", "snat_pool": "far-pool", "targets": targets });
    fleet.make(&fleet.provider, Kind::TargetGroup, "far", group);
    let listeners = json!({ "listeners": [{ "port": 443, "target_groups": [{ "target_group": "far" }] }] });
    let listeners = Spec::from_value(Kind::LoadBalancer, listeners).unwrap();
    fleet.catalog.replace(&fleet.provider, Kind::LoadBalancer, "front", listeners, None, None, None).unwrap();
    fleet.settle();
    let (state, reason) = fleet.state_of(&endpoint);
    assert_eq!(state, EndpointState::Failed);
    assert!(reason.is_some_and(|reason| reason.contains("and to the network of the service")));
    for at in 0..2 {
        let spec = json!({ "gateway": fleet.ids[at], "vpc": vpc, "port": "eth2", "prefixes": ["10.3.0.0/16"] });
        let spec = Spec::from_value(Kind::Attachment, spec).unwrap();
        let new = New { name: Some(format!("g{at}-far")), owner: None, tags: BTreeMap::new(), spec };
        fleet.catalog.create(&fleet.operator, new, None).unwrap();
    }
    fleet.settle();
    assert_eq!(fleet.have(&endpoint), holder, "it stays where it was");
    fleet.each_address_is_where_it_may_be().unwrap();
}

#[test]
fn a_dead_gateway_keeps_its_place_until_it_is_back_or_an_operator_takes_it_away() {
    let mut fleet = Fleet::new(2, 2);
    fleet.connect_all();
    let ids: Vec<_> = (0..10).map(|at| fleet.endpoint(&format!("e{at}"), json!([]))).collect();
    fleet.settle();
    let holders: Vec<_> = ids.iter().map(|id| fleet.have(id)).collect();
    assert!(holders.contains(&vec![0]) && holders.contains(&vec![1]));
    fleet.disconnect(0, false);
    fleet.drain(0, true);
    fleet.settle();
    assert_eq!(ids.iter().map(|id| fleet.have(id)).collect::<Vec<_>>(), holders, "it may still answer for them");
    let named = |fleet: &Fleet| {
        let state = fleet.catalog.read();
        let holder = |id: &String| state.endpoint(id).unwrap().status.addresses[0].gateway.clone().unwrap();
        ids.iter().map(holder).collect::<Vec<_>>()
    };
    let names: Vec<_> = holders.iter().map(|have| fleet.ids[have[0]].clone()).collect();
    assert_eq!(named(&fleet), names);
    // New ones go to who is there.
    let new = fleet.endpoint("new", json!([]));
    fleet.settle();
    assert_eq!(fleet.have(&new), [1]);
    // Back, it lets go first.
    fleet.connect(0);
    fleet.settle();
    assert!(ids.iter().all(|id| fleet.have(id) == [1]));
}
