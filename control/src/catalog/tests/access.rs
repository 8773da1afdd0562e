//! Who may do what, tokens, lists.

use std::collections::BTreeSet;

use serde_json::json;

use super::builder::{DAY, World, new, open, spec, tenant};
use crate::catalog::model::Kind;
use crate::catalog::{Code, Filter, New, Page};

#[test]
fn a_tenant_neither_sees_nor_touches_what_belongs_to_another() {
    let world = World::with_service(json!({ "allowed_principals": ["bank"] }));
    world.connect("e");
    let stranger = tenant("else");
    let objects: Vec<_> = Kind::ALL
        .into_iter()
        .flat_map(|kind| world.catalog.read().objects(kind).cloned().collect::<Vec<_>>())
        .collect();
    assert!(objects.len() > 10);
    let before = world.catalog.read().generation();
    for object in &objects {
        let (kind, id) = (object.kind(), object.id());
        for reference in [id, object.metadata().name.as_str()] {
            assert_eq!(world.catalog.one(&stranger, kind, reference).unwrap_err().code, Code::NotFound);
            let refusal = world.catalog.replace(&stranger, kind, reference, object.spec(), None, None, None);
            assert_eq!(refusal.unwrap_err().code, Code::NotFound);
            assert_eq!(world.catalog.delete(&stranger, kind, reference, None).unwrap_err().code, Code::NotFound);
            assert_eq!(world.catalog.one(&world.operator, kind, id).unwrap().id(), id);
        }
        assert!(world.names(&stranger, kind, &Filter::default()).is_empty());
    }
    assert!(world.catalog.events(&stranger, 0, 100).is_empty());
    assert_eq!(world.catalog.events(&world.consumer, 0, 100), world.catalog.events(&world.provider, 0, 100));
    assert_eq!(world.catalog.read().generation(), before);
}

#[test]
fn a_service_that_is_not_open_to_a_tenant_looks_like_one_that_is_not_there() {
    let world = World::with_service(json!({ "allowed_principals": [] }));
    let refusal = |service: &str| {
        let endpoint = json!({ "vpc": "bank-net", "service": service });
        world.try_make(&world.consumer, Kind::Endpoint, "e", endpoint).unwrap_err()
    };
    let id = world.service_id();
    let absent = format!("{}{}", Kind::Service.id_prefix(), "0".repeat(17));
    let (closed, missing) = (refusal(&id), refusal(&absent));
    assert_eq!(closed.code, Code::NotFound);
    assert_eq!(closed.message.replace(&id, ""), missing.message.replace(&absent, ""));
    assert_eq!((closed.code, closed.field), (missing.code, missing.field));
}

#[test]
fn ids_of_another_tenant_are_refused_as_references() {
    let world = World::with_service(json!({ "allowed_principals": ["*"] }));
    let vpc = world.catalog.one(&world.provider, Kind::Vpc, "shop-net").unwrap().id().to_owned();
    let refusal = world.try_make(&world.consumer, Kind::SnatPool, "p", json!({ "vpc": vpc })).unwrap_err();
    assert_eq!((refusal.code, refusal.field.as_deref()), (Code::NotFound, Some("spec.vpc")));
}

#[test]
fn only_operators_make_principals_gateways_and_attachments_and_objects_for_others() {
    let world = World::with_service(json!({}));
    for (kind, value) in [
        (Kind::Principal, json!({ "role": "operator" })),
        (Kind::Gateway, json!({})),
        (Kind::Attachment, json!({ "gateway": "gw1", "vpc": "bank-net", "port": "eth9" })),
    ] {
        assert_eq!(world.try_make(&world.consumer, kind, "mine", value).unwrap_err().code, Code::Forbidden);
    }
    let for_shop = New { owner: Some("shop".to_owned()), ..new(Kind::Vpc, "gift", json!({ "prefixes": [] })) };
    let refusal = world.catalog.create(&world.consumer, for_shop.clone(), None).unwrap_err();
    assert_eq!(refusal.code, Code::Forbidden);
    assert_eq!(world.catalog.create(&world.operator, for_shop, None).unwrap().metadata().owner, "shop");
}

#[test]
fn the_users_of_what_cannot_be_deleted_are_named_as_far_as_the_caller_may_see_them() {
    let world = World::with_service(json!({ "allowed_principals": ["bank"] }));
    let endpoint = world.connect("e");
    let refusal = world.catalog.delete(&world.provider, Kind::Service, "api", None).unwrap_err();
    assert_eq!((refusal.code, refusal.users.len()), (Code::InUse, 0));
    assert!(refusal.message.ends_with("is used by 1 object of another principal"), "{}", refusal.message);
    let id = world.service_id();
    let refusal = world.catalog.delete(&world.operator, Kind::Service, &id, None).unwrap_err();
    assert_eq!(refusal.users, [endpoint.id()]);
    let group = world.catalog.delete(&world.provider, Kind::TargetGroup, "web", None).unwrap_err();
    assert!(group.message.contains("load-balancer \"front\""), "{}", group.message);
    for kind in [Kind::Vpc, Kind::SnatPool, Kind::LoadBalancer] {
        let object = world.catalog.list(&world.provider, kind, &Filter::default(), &Page::default()).unwrap();
        let refusal = world.catalog.delete(&world.provider, kind, object.objects[0].id(), None).unwrap_err();
        assert_eq!(refusal.code, Code::InUse);
    }
    let refusal = world.catalog.delete(&world.operator, Kind::Principal, "bank", None).unwrap_err();
    assert!(refusal.users.contains(&endpoint.id().to_owned()));
    assert_eq!(world.catalog.delete(&world.operator, Kind::Principal, "root", None).unwrap_err().code, Code::InUse);
    assert_eq!(world.catalog.delete(&world.operator, Kind::Gateway, "gw1", None).unwrap_err().code, Code::InUse);
}

#[test]
fn a_token_is_known_by_its_digest_until_it_is_revoked_or_its_principal_is_gone() {
    let world = World::bare();
    let token = world.catalog.make_token(&world.operator, "bank").unwrap();
    assert_eq!(world.catalog.caller_of_token(&token), Some(world.consumer.clone()));
    assert_eq!(open(&world.store, &world.time).caller_of_token(&token), Some(world.consumer.clone()));
    let secret = token.strip_prefix("postern-token-").unwrap();
    for (key, entry) in world.store.range("", None, 1000).unwrap() {
        assert!(!key.contains(secret) && !String::from_utf8_lossy(&entry.value).contains(secret), "{key}");
    }
    assert_eq!(world.catalog.caller_of_token(&token[..token.len() - 1]), None);
    assert_eq!(world.catalog.caller_of_token(&format!("postern-token-{}", "0".repeat(64))), None);
    assert_eq!(world.catalog.make_token(&world.provider, "bank").unwrap_err().code, Code::NotFound);
    let own = world.catalog.make_token(&world.consumer, "bank").unwrap();
    let tokens = world.catalog.tokens(&world.consumer, "bank").unwrap();
    assert_eq!(tokens.len(), 2);
    for token in tokens {
        world.catalog.revoke_token(&world.consumer, "bank", &token.id).unwrap();
    }
    assert_eq!((world.catalog.caller_of_token(&token), world.catalog.caller_of_token(&own)), (None, None));
    let last = world.catalog.make_token(&world.operator, "bank").unwrap();
    world.catalog.delete(&world.operator, Kind::Principal, "bank", None).unwrap();
    assert_eq!(world.catalog.caller_of_token(&last), None);
    assert_eq!(world.catalog.begin_with_operator("root").unwrap(), None);
    world.compare_with_store();
}

#[test]
fn a_call_with_an_idempotency_token_is_made_once_in_a_day() {
    let world = World::bare();
    let call = |name: &str| {
        world.catalog.create(&world.consumer, new(Kind::Vpc, name, json!({ "prefixes": [] })), Some("t-1"))
    };
    let first = call("net").unwrap();
    world.change(&world.consumer, Kind::Vpc, "net", json!({ "prefixes": ["10.0.0.0/8"] })).unwrap();
    assert_eq!(call("net").unwrap(), first, "the same call has the same answer");
    assert_eq!(call("other").unwrap_err().code, Code::Conflict);
    let reopened = open(&world.store, &world.time);
    let again = reopened.create(&world.consumer, new(Kind::Vpc, "net", json!({ "prefixes": [] })), Some("t-1"));
    assert_eq!(again.unwrap(), first, "also after a restart");
    let other = world.catalog.create(&world.provider, new(Kind::Vpc, "net", json!({ "prefixes": [] })), Some("t-1"));
    assert_ne!(other.unwrap().id(), first.id(), "tokens are each principal's own");
    world.pass(DAY);
    assert_eq!(call("net").unwrap_err().code, Code::AlreadyExists, "the token is forgotten");
    assert!(world.store.range("call/", None, 10).unwrap().is_empty());
}

#[test]
fn a_change_of_another_version_is_refused() {
    let world = World::bare();
    world.make(&world.consumer, Kind::Vpc, "net", json!({ "prefixes": [] }));
    let replace = |version, prefix: &str| {
        let spec = spec(Kind::Vpc, json!({ "prefixes": [prefix] }));
        world.catalog.replace(&world.consumer, Kind::Vpc, "net", spec, None, Some(version), None)
    };
    assert_eq!(replace(1, "10.0.0.0/8").unwrap().metadata().version, 2);
    assert_eq!(replace(1, "11.0.0.0/8").unwrap_err().code, Code::Conflict);
    assert_eq!(world.catalog.delete(&world.consumer, Kind::Vpc, "net", Some(1)).unwrap_err().code, Code::Conflict);
    assert_eq!(replace(2, "10.0.0.0/8").unwrap().metadata().version, 2, "what changes nothing is no new version");
    world.catalog.delete(&world.consumer, Kind::Vpc, "net", Some(2)).unwrap();
}

#[test]
fn pages_give_each_object_that_stays_once_whatever_changes_meanwhile() {
    let world = World::bare();
    for number in 0..25 {
        world.make(&world.consumer, Kind::Vpc, &format!("n{number:02}"), json!({ "prefixes": [] }));
    }
    let mut page = Page { size: 4, token: None };
    let mut seen = Vec::new();
    loop {
        let listing = world.catalog.list(&world.consumer, Kind::Vpc, &Filter::default(), &page).unwrap();
        assert!(listing.objects.len() <= 4);
        seen.extend(listing.objects.iter().map(|object| object.metadata().name.clone()));
        // The object at which the page ended goes, and others come before and behind.
        let last = seen.last().unwrap();
        world.catalog.delete(&world.consumer, Kind::Vpc, last, None).unwrap();
        world.make(&world.consumer, Kind::Vpc, &format!("a{}", seen.len()), json!({ "prefixes": [] }));
        let Some(next) = listing.next else { break };
        page.token = Some(next);
    }
    let expected: Vec<_> = (0..25).map(|number| format!("n{number:02}")).collect();
    assert_eq!(seen, expected);
    for size in [0, 1001] {
        let refusal = world.catalog.list(&world.consumer, Kind::Vpc, &Filter::default(), &Page { size, token: None });
        assert_eq!(refusal.unwrap_err().code, Code::Invalid);
    }
    let page = Page { size: 1, token: Some("zz".to_owned()) };
    assert_eq!(
        world.catalog.list(&world.consumer, Kind::Vpc, &Filter::default(), &page).unwrap_err().code,
        Code::Invalid
    );
}

#[test]
fn lists_are_filtered_by_what_objects_belong_to() {
    let world = World::with_service(json!({ "allowed_principals": ["*"] }));
    for name in ["e", "f"] {
        world.connect(name);
    }
    world.catalog.delete(&world.consumer, Kind::Endpoint, "f", None).unwrap();
    let names = |filter: Filter| world.names(&world.consumer, Kind::Endpoint, &filter);
    let service = Some(world.service_id());
    assert_eq!(names(Filter { service: service.clone(), ..Filter::default() }), ["e", "f"]);
    let state = Some(crate::catalog::model::EndpointState::Pending);
    assert_eq!(names(Filter { service, state, ..Filter::default() }), ["e"]);
    assert_eq!(
        names(Filter { vpc: Some("bank-net".to_owned()), name: Some("f".to_owned()), ..Filter::default() }),
        ["f"]
    );
    assert!(names(Filter { owner: Some("shop".to_owned()), ..Filter::default() }).is_empty());
    let all = world.names(&world.operator, Kind::Vpc, &Filter::default());
    assert_eq!(all.into_iter().collect::<BTreeSet<_>>(), ["bank-net".to_owned(), "shop-net".to_owned()].into());
    let wrong = Filter { service: Some("api".to_owned()), ..Filter::default() };
    let refusal = world.catalog.list(&world.consumer, Kind::Vpc, &wrong, &Page::default()).unwrap_err();
    assert_eq!(refusal.code, Code::Invalid);
}
