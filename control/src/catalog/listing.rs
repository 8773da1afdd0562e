//! Lists of objects, filtered and page by page.

use std::collections::BTreeMap;

use super::access::{find, sees};
use super::draft::Draft;
use super::model::{EndpointState, Kind};
use super::object::AnyObject;
use super::state::{State, index_owner, references};
use super::writing::hexadecimal;
use super::{Caller, Catalog, Code, Refusal};

/// Which objects are wanted; all conditions must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Name of the owner.
    pub owner: Option<String>,
    /// The name.
    pub name: Option<String>,
    /// Tags with their values.
    pub tags: BTreeMap<String, String>,
    /// What belongs to a VPC: its id, or its name among the caller's own.
    pub vpc: Option<String>,
    /// Endpoints that stand for a service: its id, or its name among the caller's own.
    pub service: Option<String>,
    /// Endpoints in a state.
    pub state: Option<EndpointState>,
}

/// A page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Most objects on it, 1…1000.
    pub size: usize,
    /// [`Listing::next`] of the page before; `None`: the first.
    pub token: Option<String>,
}

impl Default for Page {
    /// The first, of 100 objects.
    fn default() -> Self {
        Self { size: 100, token: None }
    }
}

/// Objects by owner, name and id. Whatever changes meanwhile, pages in turn give each object that stays exactly once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// The objects.
    pub objects: Vec<AnyObject>,
    /// The token of the next page, if there is one.
    pub next: Option<String>,
}

impl Catalog {
    /// Objects of a kind that the caller may see.
    ///
    /// # Errors
    /// When the page's size or token, or a condition, is not one.
    pub fn list(&self, caller: &Caller, kind: Kind, filter: &Filter, page: &Page) -> Result<Listing, Refusal> {
        if !(1..=1000).contains(&page.size) {
            return Err(Refusal::range("limit", page.size as i64, (1, 1000), " objects"));
        }
        let own = index_owner(kind, &caller.principal);
        let only = match &filter.owner {
            Some(owner) if index_owner(kind, owner) == owner => Some(owner.as_str()),
            _ if caller.is_operator() => None,
            _ => Some(own),
        };
        let after = page.token.as_deref().map(position).transpose()?;
        let start =
            after.clone().unwrap_or_else(|| (only.unwrap_or_default().to_owned(), String::new(), String::new()));
        let state = self.read();
        let wanted = Wanted::new(&state, self.now(), caller, kind, filter)?;
        let mut objects: Vec<AnyObject> = Vec::new();
        let mut last = None;
        let named = state.named(kind, start).take_while(|name| only.is_none_or(|only| name.0 == only));
        for (owner, name, id) in named {
            let here = (owner, name, id);
            if after.as_ref().is_some_and(|after| (after.0.as_str(), after.1.as_str(), after.2.as_str()) == here) {
                continue;
            }
            let Some(object) = state.object(kind, id).filter(|object| wanted.has(object)) else { continue };
            if objects.len() == page.size {
                return Ok(Listing { objects, next: last });
            }
            objects.push(self.presented(&state, object));
            last = Some(token(here));
        }
        Ok(Listing { objects, next: None })
    }
}

/// A filter with its references resolved.
struct Wanted<'w> {
    caller: &'w Caller,
    filter: &'w Filter,
    /// Ids that an object must refer to.
    refers: Vec<String>,
}

impl<'w> Wanted<'w> {
    fn new(state: &State, now: u64, caller: &'w Caller, kind: Kind, filter: &'w Filter) -> Result<Self, Refusal> {
        let draft = Draft::new(state, now);
        let refuse = |field: &str| {
            Err(Refusal::new(Code::Invalid, format!("{field}: a {kind} has none; leave it out")).at(field))
        };
        let mut refers = Vec::new();
        if let Some(vpc) = &filter.vpc {
            if !matches!(kind, Kind::Attachment | Kind::SnatPool | Kind::TargetGroup | Kind::Service | Kind::Endpoint) {
                return refuse("vpc");
            }
            refers.push(find(&draft, caller, Kind::Vpc, vpc)?.id().to_owned());
        }
        if let Some(service) = &filter.service {
            if kind != Kind::Endpoint {
                return refuse("service");
            }
            // A consumer knows the id of a service that is not its own.
            let id = find(&draft, caller, Kind::Service, service).map(|object| object.id().to_owned());
            refers.push(id.unwrap_or_else(|_| service.clone()));
        }
        if filter.state.is_some() && kind != Kind::Endpoint {
            return refuse("state");
        }
        Ok(Self { caller, filter, refers })
    }

    fn has(&self, object: &AnyObject) -> bool {
        let Filter { owner, name, tags, state, .. } = self.filter;
        let metadata = object.metadata();
        let tagged = |(key, value)| metadata.tags.get(key) == Some(value);
        let in_state = |state: &EndpointState| object.as_endpoint().is_some_and(|e| e.status.state == *state);
        sees(self.caller, object)
            && owner.as_ref().is_none_or(|owner| *owner == metadata.owner)
            && name.as_ref().is_none_or(|name| *name == metadata.name)
            && tags.iter().all(tagged)
            && state.as_ref().is_none_or(in_state)
            && (self.refers.is_empty() || {
                let endpoint = object.as_endpoint().map(|endpoint| [&endpoint.spec.vpc, &endpoint.spec.service]);
                match endpoint {
                    // Also one that is deleted, which refers to nothing any more.
                    Some(refers) => self.refers.iter().all(|id| refers.contains(&id)),
                    None => self.refers.iter().all(|id| references(object).contains(id)),
                }
            })
    }
}

/// A place in a list, in a form that nobody takes apart by accident.
fn token(place: (&str, &str, &str)) -> String {
    hexadecimal(format!("{}\n{}\n{}", place.0, place.1, place.2).as_bytes())
}

fn position(token: &str) -> Result<(String, String, String), Refusal> {
    let place = || {
        let digit = |byte: &u8| char::from(*byte).to_digit(16).map(|digit| digit as u8);
        let pair = |pair: &[u8]| Some(digit(pair.first()?)? << 4 | digit(pair.get(1)?)?);
        let bytes = token.as_bytes().chunks(2).map(pair).collect::<Option<Vec<_>>>()?;
        let text = String::from_utf8(bytes).ok()?;
        let mut parts = text.split('\n').map(str::to_owned);
        let place = (parts.next()?, parts.next()?, parts.next()?);
        parts.next().is_none().then_some(place)
    };
    place().ok_or_else(|| Refusal::form("page", token, "the token of a page"))
}
