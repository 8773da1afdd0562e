//! From a draft to the store and to memory; what the store looks like.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::{broadcast, watch};

use super::draft::Draft;
use super::model::{Event, Kind};
use super::object::AnyObject;
use super::reports::Reports;
use super::state::{Credential, State};
use super::{CHANGES_ROOM, Caller, Catalog, CatalogError, Change, Code, Refusal, Settings};
use crate::store::{Condition, Entry, Outcome, Store, Transaction};

/// What the catalog's keys and values look like.
const FORMAT: u64 = 1;
/// `{"format", "id"}`
const CATALOG: &str = "catalog/header";
/// The generation; compared with in every transaction.
const GENERATION: &str = "catalog/generation";
/// `object/KIND/ID`: the object.
const OBJECT: &str = "object/";
/// `event/SEQUENCE`: the event.
const EVENT: &str = "event/";
/// `token/DIGEST`: whose it is.
const TOKEN: &str = "token/";
/// `call/TIME/DIGEST`: a call with an idempotency token, and its answer.
const CALL: &str = "call/";
/// How long an idempotency token is known, in milliseconds: a day.
pub(super) const CALLS_KEPT: u64 = 24 * 3600 * 1000;
/// How long events are kept, in milliseconds: 30 days.
pub(super) const EVENTS_KEPT: u64 = 30 * 24 * 3600 * 1000;
/// Entries read at a time.
const PAGE: usize = 1000;

/// What only the one who changes something needs.
pub(super) struct Writer {
    /// Of the key [`GENERATION`].
    revision: u64,
    /// The sequence number of the next event.
    next_event: u64,
    /// Known calls by the digest of principal and token.
    calls: HashMap<String, Call>,
    /// The same by time.
    calls_by_time: BTreeSet<(u64, String)>,
}

#[derive(Clone)]
struct Call {
    time: u64,
    /// Digest of what was called.
    call: String,
}

impl Call {
    fn key(&self, token: &str) -> String {
        format!("{CALL}{:020}/{token}", self.time)
    }
}

#[derive(Serialize, Deserialize)]
struct Header {
    format: u64,
    id: String,
}

#[derive(Serialize, Deserialize)]
struct Answer {
    call: String,
    kind: Kind,
    object: serde_json::Value,
}

impl Catalog {
    /// Opens the catalog that is in the store, or makes one in an empty store.
    ///
    /// # Errors
    /// When the store cannot be read, or has something in it that is not a catalog of this format.
    pub fn open(store: Arc<dyn Store>, settings: Settings) -> Result<Self, CatalogError> {
        let id = match store.entry(CATALOG)? {
            Some(entry) => {
                let header: Header = decoded(CATALOG, &entry.value)?;
                if header.format != FORMAT {
                    return Err(CatalogError::Format { found: header.format, known: FORMAT });
                }
                header.id
            }
            None => begin(&*store)?,
        };
        let generation = store.entry(GENERATION)?;
        let Some(Entry { revision, value }) = generation else {
            return Err(CatalogError::Damaged { key: GENERATION.to_owned(), problem: "it is missing".to_owned() });
        };
        let mut state = State::default();
        state.generation = decoded(GENERATION, &value)?;
        for kind in Kind::ALL {
            each(&*store, &format!("{OBJECT}{kind}/"), |key, entry| {
                let object = AnyObject::from_slice(kind, &entry.value).map_err(|error| damaged(key, error))?;
                state.put(Arc::new(object));
                Ok(())
            })?;
        }
        each(&*store, TOKEN, |key, entry| {
            let credential: Credential = decoded(key, &entry.value)?;
            state.tokens.insert(key[TOKEN.len()..].to_owned(), credential);
            Ok(())
        })?;
        let mut events = VecDeque::new();
        each(&*store, EVENT, |key, entry| {
            events.push_back(decoded::<Event>(key, &entry.value)?);
            Ok(())
        })?;
        let last_event = events.back().map_or(0, |event| event.sequence);
        let (calls, calls_by_time) = calls(&*store)?;
        Ok(Self {
            id,
            store,
            settings,
            state: RwLock::new(state),
            writer: Mutex::new(Writer { revision, next_event: last_event + 1, calls, calls_by_time }),
            events: RwLock::new(events),
            reports: RwLock::new(Reports::default()),
            changes: broadcast::channel(CHANGES_ROOM).0,
            last_event: watch::channel(last_event).0,
        })
    }

    /// Makes a change: in a draft, then in the store, then in memory.
    pub(super) fn change<T>(&self, make: impl FnOnce(&mut Draft<'_>) -> Result<T, Refusal>) -> Result<T, Refusal> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        self.change_as(&mut writer, make)
    }

    fn change_as<T>(
        &self,
        writer: &mut Writer,
        make: impl FnOnce(&mut Draft<'_>) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let state = self.read();
        let mut draft = Draft::new(&state, self.now());
        let answer = make(&mut draft)?;
        if draft.is_empty() {
            return Ok(answer);
        }
        let generation = state.generation + 1;
        let changes = draft.changes();
        let events = self.numbered(&draft, writer.next_event);
        let mut transaction = Transaction {
            conditions: vec![Condition { key: GENERATION.to_owned(), revision: writer.revision }],
            changes: vec![(GENERATION.to_owned(), Some(json(&generation)?))],
        };
        for ((kind, id), object) in &changes {
            let value = object.as_ref().map(|object| json(&**object)).transpose()?;
            transaction.changes.push((format!("{OBJECT}{kind}/{id}"), value));
        }
        for event in &events {
            transaction.changes.push((event_key(event.sequence), Some(json(event)?)));
        }
        for (digest, credential) in &draft.tokens {
            let value = credential.as_ref().map(json).transpose()?;
            transaction.changes.push((format!("{TOKEN}{digest}"), value));
        }
        let (tokens, other) = (std::mem::take(&mut draft.tokens), std::mem::take(&mut draft.other));
        transaction.changes.extend(other);
        drop(state);
        match self.store.commit(&transaction) {
            Ok(Outcome::Committed(revision)) => writer.revision = revision,
            Ok(Outcome::Conflict) => {
                let message = "the store was changed by another process, or a write before was not answered; restart";
                return Err(Refusal::new(Code::Internal, message));
            }
            Err(error) => return Err(Refusal::new(Code::Internal, format!("the change was not stored: {error}"))),
        }
        writer.next_event += events.len() as u64;
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.generation = generation;
        let touched: Vec<_> = changes.keys().cloned().collect();
        for ((kind, id), object) in changes {
            match object {
                Some(object) => state.put(object),
                None => {
                    state.remove(kind, &id);
                    self.forget_reports_of(kind, &id);
                }
            }
        }
        for (digest, credential) in tokens {
            match credential {
                Some(credential) => state.tokens.insert(digest, credential),
                None => state.tokens.remove(&digest),
            };
        }
        // Nobody may listen.
        let _ = self.changes.send(Arc::new(Change { generation, touched }));
        drop(state);
        if let Some(last) = events.last().map(|event| event.sequence) {
            self.events.write().unwrap_or_else(PoisonError::into_inner).extend(events);
            self.last_event.send_replace(last);
        }
        Ok(answer)
    }

    fn numbered(&self, draft: &Draft<'_>, first: u64) -> Vec<Event> {
        let events = draft.events.iter().zip(first..);
        let event = |(made, sequence): (&(_, [String; 4]), u64)| {
            let (event, [service, provider, endpoint, consumer]) = made.clone();
            Event { sequence, time: draft.now, event, service, provider, endpoint, consumer }
        };
        events.map(event).collect()
    }

    /// A change that answers with an object, and the same way if it is called again with the token.
    pub(super) fn idempotent(
        &self,
        caller: &Caller,
        token: Option<&str>,
        call: &impl Serialize,
        make: impl FnOnce(&mut Draft<'_>) -> Result<(Kind, String), Refusal>,
    ) -> Result<AnyObject, Refusal> {
        let lost = || Refusal::new(Code::Internal, "the object of this change is gone");
        let Some(token) = token else {
            let (kind, id) = self.change(make)?;
            let state = self.read();
            let object = state.object(kind, &id).ok_or_else(lost)?;
            return Ok(self.presented(&state, object));
        };
        if token.is_empty() || token.len() > 128 || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            let allowed = "an idempotency token; allowed is 1 to 128 printable characters without blanks";
            return Err(Refusal::form("idempotency token", token, allowed));
        }
        let token = digest(&json(&(&caller.principal, token))?);
        let call = digest(&json(call)?);
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.now();
        if let Some(known) = writer.calls.get(&token).filter(|known| known.time.saturating_add(CALLS_KEPT) > now) {
            return self.answered(known, &token, &call);
        }
        let mut record = Call { time: now, call };
        let mut answer = None;
        self.change_as(&mut writer, |draft| {
            let (kind, id) = make(draft)?;
            record.time = draft.now;
            let object = draft.object(kind, &id).ok_or_else(lost)?.clone();
            let stored =
                Answer { call: record.call.clone(), kind, object: serde_json::to_value(&*object).map_err(internal)? };
            draft.other.push((record.key(&token), Some(json(&stored)?)));
            answer = Some(object);
            Ok(())
        })?;
        writer.calls_by_time.insert((record.time, token.clone()));
        writer.calls.insert(token, record);
        drop(writer);
        Ok(self.presented(&self.read(), &*answer.ok_or_else(lost)?))
    }

    /// The answer that a call had.
    fn answered(&self, known: &Call, token: &str, call: &str) -> Result<AnyObject, Refusal> {
        if known.call != call {
            let message = "the idempotency token was used for another call within the last 24 hours";
            return Err(Refusal::new(Code::Conflict, message).at("idempotency token"));
        }
        let entry = self.store.entry(&known.key(token)).map_err(internal)?;
        let entry = entry.ok_or_else(|| Refusal::new(Code::Internal, "the answer of the first call is lost"))?;
        let answer: Answer = serde_json::from_slice(&entry.value).map_err(internal)?;
        let object = json(&answer.object)?;
        let object = AnyObject::from_slice(answer.kind, &object).map_err(internal)?;
        Ok(self.presented(&self.read(), &object))
    }

    /// Forgets calls and events that are old, at most 1,000 of each. Whether there may be more.
    pub(super) fn forget_old(&self, now: u64) -> Result<bool, Refusal> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let calls = writer.calls_by_time.iter().take_while(|(time, _)| time.saturating_add(CALLS_KEPT) <= now);
        let calls: Vec<_> = calls.take(PAGE).cloned().collect();
        let events = self.events.read().unwrap_or_else(PoisonError::into_inner);
        // The last one stays: it says which number comes next.
        let old = events.iter().take(events.len().saturating_sub(1));
        let old = old.take_while(|event| event.time.saturating_add(EVENTS_KEPT) <= now);
        let old: Vec<_> = old.take(PAGE).map(|event| event.sequence).collect();
        drop(events);
        if calls.is_empty() && old.is_empty() {
            return Ok(false);
        }
        self.change_as(&mut writer, |draft| {
            for (time, token) in &calls {
                draft.other.push((Call { time: *time, call: String::new() }.key(token), None));
            }
            draft.other.extend(old.iter().map(|&sequence| (event_key(sequence), None)));
            Ok(())
        })?;
        for call in &calls {
            writer.calls_by_time.remove(call);
            writer.calls.remove(&call.1);
        }
        self.events.write().unwrap_or_else(PoisonError::into_inner).drain(..old.len());
        Ok(calls.len() == PAGE || old.len() == PAGE)
    }
}

/// Writes the header of a new catalog.
fn begin(store: &dyn Store) -> Result<String, CatalogError> {
    let id = random_id("cat-").map_err(|refusal| damaged(CATALOG, refusal))?;
    let header = Header { format: FORMAT, id: id.clone() };
    let value = |value: Result<Vec<u8>, Refusal>| value.map_err(|refusal| damaged(CATALOG, refusal));
    let transaction = Transaction {
        conditions: vec![Condition { key: CATALOG.to_owned(), revision: 0 }],
        changes: vec![
            (CATALOG.to_owned(), Some(value(json(&header))?)),
            (GENERATION.to_owned(), Some(value(json(&0_u64))?)),
        ],
    };
    match store.commit(&transaction)? {
        Outcome::Committed(_) => Ok(id),
        Outcome::Conflict => Err(CatalogError::Conflict),
    }
}

/// Known calls, by token and by time.
type Calls = (HashMap<String, Call>, BTreeSet<(u64, String)>);

fn calls(store: &dyn Store) -> Result<Calls, CatalogError> {
    let mut calls = HashMap::new();
    let mut by_time = BTreeSet::new();
    each(store, CALL, |key, entry| {
        let answer: Answer = decoded(key, &entry.value)?;
        let form = || damaged(key, "its key is not TIME/DIGEST");
        let (time, token) = key[CALL.len()..].split_once('/').ok_or_else(form)?;
        let time = time.parse().map_err(|_| form())?;
        by_time.insert((time, token.to_owned()));
        calls.insert(token.to_owned(), Call { time, call: answer.call });
        Ok(())
    })?;
    Ok((calls, by_time))
}

/// Calls `take` for every entry whose key begins with `prefix`.
fn each(
    store: &dyn Store,
    prefix: &str,
    mut take: impl FnMut(&str, &Entry) -> Result<(), CatalogError>,
) -> Result<(), CatalogError> {
    let mut after: Option<String> = None;
    loop {
        let page = store.range(prefix, after.as_deref(), PAGE)?;
        for (key, entry) in &page {
            take(key, entry)?;
        }
        match page.into_iter().nth(PAGE - 1) {
            Some((last, _)) => after = Some(last),
            None => return Ok(()),
        }
    }
}

fn event_key(sequence: u64) -> String {
    format!("{EVENT}{sequence:020}")
}

fn decoded<T: for<'de> Deserialize<'de>>(key: &str, value: &[u8]) -> Result<T, CatalogError> {
    serde_json::from_slice(value).map_err(|error| damaged(key, error))
}

fn damaged(key: &str, problem: impl ToString) -> CatalogError {
    CatalogError::Damaged { key: key.to_owned(), problem: problem.to_string() }
}

pub(super) fn json(value: &impl Serialize) -> Result<Vec<u8>, Refusal> {
    serde_json::to_vec(value).map_err(internal)
}

fn internal(error: impl ToString) -> Refusal {
    Refusal::new(Code::Internal, error.to_string())
}

/// SHA-256 in hexadecimal digits.
pub(super) fn digest(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Bytes that nobody can guess.
pub(super) fn random<const N: usize>() -> Result<[u8; N], Refusal> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| internal(format!("the system gives no random bytes: {error}")))?;
    Ok(bytes)
}

/// `prefix` and 17 hexadecimal digits.
pub(super) fn random_id(prefix: &str) -> Result<String, Refusal> {
    let mut id = format!("{prefix}{}", hexadecimal(&random::<9>()?));
    id.pop();
    Ok(id)
}
