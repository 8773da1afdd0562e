//! What decides on a target beside the flow's hash, with real TCP stacks: where a client was sent before, the port, the zone.

use std::collections::BTreeSet;
use std::net::SocketAddrV4;
use std::time::Duration;

use postern_lab::network::{self, ENDPOINT, TARGETS};
use postern_lab::server::PAGE_PORT;
use postern_lab::{Client, Topology};
use postern_tables::declaration::{Declaration, TargetGroup};

use crate::bed::{Bed, eventually};
use crate::counters::SOME;

/// Workers take new tables in moments; machines that test are busy.
const SOON: Duration = Duration::from_secs(60);

fn group<'d>(declaration: &'d mut Declaration, name: &str) -> &'d mut TargetGroup {
    declaration.target_groups.iter_mut().find(|group| group.name == name).expect("the lab declares it")
}

/// Who answers so many connections to `to`.
pub(crate) fn who_answers(bed: &Bed, consumer: usize, to: SocketAddrV4, count: usize) -> BTreeSet<String> {
    let ask = |client: Client| (0..count).map(|_| client.ask_tcp(to, 0).unwrap().answer.target).collect();
    bed.ask(consumer, ask)
}

#[test]
fn a_sticky_client_is_answered_by_one_target_whichever_worker_has_its_flows() {
    let sticky = |declaration: &mut Declaration| group(declaration, "page").sticky_seconds = Some(600);
    let Some(mut bed) = Bed::start_with(Topology::builder().workers(2), sticky) else { return };
    let first = who_answers(&bed, 0, network::page(), 40);
    assert_eq!(first.len(), 1, "{first:?}");
    // Its target is heard of again also after others have come and gone.
    let kept = bed.configuration(|declaration| {
        let group = group(declaration, "page");
        group.targets.retain(|target| {
            format!("target-{}", target.address.rsplit('.').next().unwrap().parse::<u8>().unwrap() - 10)
                == *first.first().unwrap()
        });
        group.targets[0].weight = Some(1);
    });
    bed.gateway_mut().reload(&kept).unwrap();
    let all = bed.configuration(|_| {});
    bed.gateway_mut().reload(&all).unwrap();
    assert_eq!(who_answers(&bed, 0, network::page(), 20), first);
    bed.expect_counters(&[]);
}

#[test]
fn port_mapping_reaches_each_target_by_a_port_of_its_own() {
    let mapped = |declaration: &mut Declaration| {
        for (at, target) in (0..).zip(&mut group(declaration, "page").targets) {
            target.mapped_port = Some(9092 + at);
        }
        for balancer in &mut declaration.load_balancers {
            let listeners = balancer.listeners.iter_mut();
            for listener in listeners.filter(|listener| listener.port == i64::from(PAGE_PORT)) {
                (listener.port, listener.ports) = (0, Some("9092-9191".to_owned()));
            }
        }
    };
    let Some(bed) = Bed::start_with(Topology::builder().workers(2), mapped) else { return };
    for at in 0..TARGETS.len() {
        let to = SocketAddrV4::new(ENDPOINT, 9092 + at as u16);
        assert_eq!(who_answers(&bed, 1, to, 8), BTreeSet::from([format!("target-{}", at + 1)]));
    }
    // A port that leads nowhere.
    let quick = Client { deadline: Duration::from_millis(300) };
    assert!(bed.ask(0, |_| quick.ask_tcp(SocketAddrV4::new(ENDPOINT, 9191), 0).is_err()));
    bed.expect_counters(&[("drops.no_target", SOME), ("endpoints.drops", SOME)]);
}

#[test]
fn an_endpoint_with_a_zone_is_answered_by_the_targets_of_its_zone_and_by_others_when_there_are_none() {
    let zoned = |declaration: &mut Declaration| {
        for (target, zone) in group(declaration, "page").targets.iter_mut().zip(["a", "b", "b"]) {
            target.zone = Some(zone.to_owned());
        }
        declaration.endpoints[0].zones = vec!["a".to_owned()];
    };
    let Some(mut bed) = Bed::start_with(Topology::builder().workers(2), zoned) else { return };
    assert_eq!(who_answers(&bed, 0, network::page(), 30), BTreeSet::from(["target-1".to_owned()]));
    assert_eq!(who_answers(&bed, 1, network::page(), 60).len(), 3, "an endpoint without a zone has all");
    let without = bed.configuration(|declaration| {
        zoned(declaration);
        group(declaration, "page").targets[0].weight = Some(0);
    });
    bed.gateway_mut().reload(&without).unwrap();
    let others = BTreeSet::from(["target-2".to_owned(), "target-3".to_owned()]);
    eventually("the zone without targets is left", SOON, || who_answers(&bed, 0, network::page(), 60) == others);
    let across = bed.configuration(|declaration| {
        zoned(declaration);
        declaration.load_balancers.iter_mut().for_each(|balancer| balancer.cross_zone = Some(true));
    });
    bed.gateway_mut().reload(&across).unwrap();
    eventually("all zones answer", SOON, || who_answers(&bed, 0, network::page(), 60).len() == 3);
    bed.expect_counters(&[]);
}
