//! What the catalog would be with some changes: looked at like the state, checked as a whole, then kept or thrown away.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::Refusal;
use super::model::{EventKind, Kind};
use super::object::AnyObject;
use super::state::{Credential, State, index_owner};

/// A state and changes to it.
pub(super) struct Draft<'s> {
    base: &'s State,
    /// New and changed objects, with their own indices.
    over: State,
    /// Every object that is changed: also those that are new or gone.
    touched: BTreeSet<(Kind, String)>,
    /// Events that the changes make: what happened, service, provider, endpoint, consumer.
    pub(super) events: Vec<(EventKind, [String; 4])>,
    /// Tokens by digest; `None`: revoked.
    pub(super) tokens: Vec<(String, Option<Credential>)>,
    /// Where objects stand in the call, by id, if it has more than one.
    pub(super) places: BTreeMap<String, String>,
    /// Keys of the store that are not objects.
    pub(super) other: Vec<(String, Option<Vec<u8>>)>,
    /// Milliseconds since 1970.
    pub(super) now: u64,
}

impl<'s> Draft<'s> {
    pub(super) fn new(base: &'s State, now: u64) -> Self {
        Self {
            base,
            over: State::default(),
            touched: BTreeSet::new(),
            events: Vec::new(),
            tokens: Vec::new(),
            places: BTreeMap::new(),
            other: Vec::new(),
            now,
        }
    }

    /// Whether there is nothing to keep.
    pub(super) fn is_empty(&self) -> bool {
        self.touched.is_empty() && self.events.is_empty() && self.tokens.is_empty() && self.other.is_empty()
    }

    /// A refusal of an object, with where the object stands in the call.
    pub(super) fn placed(&self, id: &str, refusal: Refusal) -> Refusal {
        let Some(place) = self.places.get(id) else { return refusal };
        let field = refusal.field.as_ref().map_or_else(|| place.clone(), |field| format!("{place}.{field}"));
        Refusal { message: format!("{place}: {}", refusal.message), field: Some(field), ..refusal }
    }

    /// Revokes every token of a principal.
    pub(super) fn forget_tokens_of(&mut self, principal: &str) {
        let tokens = self.base.tokens.iter().filter(|(_, credential)| credential.principal == principal);
        self.tokens.extend(tokens.map(|(digest, _)| (digest.clone(), None)));
    }

    pub(super) const fn touched(&self) -> &BTreeSet<(Kind, String)> {
        &self.touched
    }

    /// What is to be kept: objects by kind and id, `None` for those that are gone.
    pub(super) fn changes(&self) -> BTreeMap<(Kind, String), Option<Arc<AnyObject>>> {
        let object = |(kind, id): &(Kind, String)| ((*kind, id.clone()), self.over.object(*kind, id).cloned());
        self.touched.iter().map(object).collect()
    }

    pub(super) fn put(&mut self, object: AnyObject) {
        self.touched.insert((object.kind(), object.id().to_owned()));
        self.over.put(Arc::new(object));
    }

    pub(super) fn remove(&mut self, kind: Kind, id: &str) {
        self.touched.insert((kind, id.to_owned()));
        self.over.remove(kind, id);
    }

    fn is_touched(&self, kind: Kind, id: &str) -> bool {
        !self.touched.is_empty() && self.touched.contains(&(kind, id.to_owned()))
    }

    /// The object as it was.
    pub(super) fn before(&self, kind: Kind, id: &str) -> Option<&'s Arc<AnyObject>> {
        self.base.object(kind, id)
    }

    /// The object as it would be.
    pub(super) fn object(&self, kind: Kind, id: &str) -> Option<&Arc<AnyObject>> {
        match self.over.object(kind, id) {
            Some(object) => Some(object),
            None if self.is_touched(kind, id) => None,
            None => self.base.object(kind, id),
        }
    }

    /// The object of an owner with a name; one that is not deleted, if there is one.
    pub(super) fn named(&self, kind: Kind, owner: &str, name: &str) -> Option<&Arc<AnyObject>> {
        let owner = index_owner(kind, owner);
        let base = self.base.ids_by_name(kind, owner, name).filter(|id| !self.is_touched(kind, id));
        let ids = self.over.ids_by_name(kind, owner, name).chain(base);
        let objects = ids.filter_map(|id| self.object(kind, id));
        objects.max_by_key(|object| (!object.is_deleted(), object.metadata().created))
    }

    /// Ids of the objects of a kind that refer to an object.
    pub(super) fn users_of_kind<'d>(&'d self, id: &str, kind: Kind) -> impl Iterator<Item = &'d str> + use<'d, 's> {
        let base = self.base.users_of_kind(id, kind).filter(move |id| !self.is_touched(kind, id));
        self.over.users_of_kind(id, kind).chain(base)
    }

    /// All objects that refer to an object.
    pub(super) fn users<'d>(&'d self, id: &str) -> impl Iterator<Item = (Kind, &'d str)> + use<'d, 's> {
        let base = self.base.users(id).filter(|(kind, id)| !self.is_touched(*kind, id));
        self.over.users(id).chain(base)
    }

    /// Who has or names an address of a VPC.
    pub(super) fn claims<'d>(
        &'d self,
        vpc: &str,
        address: IpAddr,
    ) -> impl Iterator<Item = (Kind, &'d str)> + use<'d, 's> {
        let base = self.base.claims(vpc, address).filter(|(kind, id)| !self.is_touched(*kind, id));
        self.over.claims(vpc, address).chain(base)
    }

    /// Objects of a kind and owner.
    pub(super) fn owned<'d>(&'d self, kind: Kind, owner: &'d str) -> impl Iterator<Item = &'d Arc<AnyObject>> {
        let of = index_owner(kind, owner);
        let start = || (of.to_owned(), String::new(), String::new());
        let mine = move |name: &(&str, &str, &str)| name.0 == of;
        let base = self.base.named(kind, start()).take_while(mine).filter(move |name| !self.is_touched(kind, name.2));
        let ids = self.over.named(kind, start()).take_while(mine).chain(base).map(|name| name.2);
        ids.filter_map(move |id| self.object(kind, id)).filter(move |object| object.metadata().owner == owner)
    }

    /// All objects of a kind.
    pub(super) fn all<'d>(&'d self, kind: Kind) -> impl Iterator<Item = &'d Arc<AnyObject>> + use<'d, 's> {
        let base = self.base.objects(kind).filter(move |object| !self.is_touched(kind, object.id()));
        self.over.objects(kind).chain(base)
    }

    /// Tokens by digest, as they were.
    pub(super) fn kept_tokens(&self) -> impl Iterator<Item = (&'s String, &'s Credential)> + use<'s> {
        self.base.tokens.iter()
    }
}
