//! Who calls: tokens of principals, of which only digests are kept.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::access::find;
use super::draft::Draft;
use super::model::{Kind, Metadata, PrincipalSpec, Role};
use super::object::{AnyObject, Spec};
use super::state::Credential;
use super::writing::{digest, hexadecimal, random, random_id};
use super::{Caller, Catalog, Code, Refusal};

/// What a token begins with; 64 hexadecimal digits follow. So that it is found where it should not be.
const TOKEN: &str = "postern-token-";
/// Most tokens of a principal.
const TOKENS: usize = 100;

/// What is known of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TokenInfo {
    /// What it is revoked by: the first 17 digits of its digest.
    pub id: String,
    /// When it was made, in milliseconds since 1970.
    pub created: u64,
}

impl Catalog {
    /// Makes a token for a principal, by id or name: for operators, and for the principal itself. It is shown this once.
    ///
    /// # Errors
    /// When there is no such principal, it is another's, or it has 100 tokens.
    pub fn make_token(&self, caller: &Caller, principal: &str) -> Result<String, Refusal> {
        self.change(|draft| {
            let id = holder(draft, caller, principal)?;
            if draft.tokens_of(&id).count() >= TOKENS {
                let message = format!("{principal} has {TOKENS} tokens, and may not have more; revoke one");
                return Err(Refusal::new(Code::TooLarge, message));
            }
            new_token(draft, id)
        })
    }

    /// The tokens of a principal, the oldest first.
    ///
    /// # Errors
    /// When there is no such principal, or it is another's.
    pub fn tokens(&self, caller: &Caller, principal: &str) -> Result<Vec<TokenInfo>, Refusal> {
        let state = self.read();
        let draft = Draft::new(&state, self.now());
        let id = holder(&draft, caller, principal)?;
        let info = |(digest, credential): (&String, &Credential)| TokenInfo {
            id: token_id(digest).to_owned(),
            created: credential.created,
        };
        let mut tokens: Vec<_> = draft.tokens_of(&id).map(info).collect();
        tokens.sort_by(|one, other| (one.created, &one.id).cmp(&(other.created, &other.id)));
        Ok(tokens)
    }

    /// Revokes a token of a principal by [`TokenInfo::id`]. Whoever has it is nobody from now on.
    ///
    /// # Errors
    /// When there is no such principal or token, or it is another's.
    pub fn revoke_token(&self, caller: &Caller, principal: &str, token: &str) -> Result<(), Refusal> {
        self.change(|draft| {
            let id = holder(draft, caller, principal)?;
            let digest = draft.tokens_of(&id).map(|(digest, _)| digest).find(|digest| token_id(digest) == token);
            let missing = || Refusal::new(Code::NotFound, format!("{principal} has no token of that id"));
            let digest = digest.ok_or_else(missing)?.clone();
            draft.tokens.push((digest, None));
            Ok(())
        })
    }

    /// Whose token this is.
    #[must_use]
    pub fn caller_of_token(&self, token: &str) -> Option<Caller> {
        let digits = token.strip_prefix(TOKEN).filter(|digits| digits.len() == 64)?;
        let state = self.read();
        // Looked up by digest: how long it takes says nothing of the token.
        let credential = state.tokens.get(&digest(digits.as_bytes()))?;
        let principal = state.object(Kind::Principal, &credential.principal)?.as_principal()?;
        Some(Caller { principal: principal.metadata.name.clone(), role: principal.spec.role })
    }

    /// The principal with a name: who that is was proved otherwise, as by a certificate.
    #[must_use]
    pub fn caller_of_name(&self, name: &str) -> Option<Caller> {
        let state = self.read();
        let draft = Draft::new(&state, self.now());
        let principal = draft.named(Kind::Principal, "", name)?.as_principal()?;
        Some(Caller { principal: principal.metadata.name.clone(), role: principal.spec.role })
    }

    /// Makes the first operator, of this name, and a token for it. `None` if there is an operator already.
    ///
    /// # Errors
    /// When the name is none, or the store failed.
    pub fn begin_with_operator(&self, name: &str) -> Result<Option<String>, Refusal> {
        super::check::name(name)?;
        self.change(|draft| {
            let is_operator = |object: &AnyObject| object.as_principal().is_some_and(|p| p.spec.role == Role::Operator);
            if draft.all(Kind::Principal).any(|object| is_operator(object)) {
                return Ok(None);
            }
            let id = random_id(Kind::Principal.id_prefix())?;
            let metadata = Metadata {
                id: id.clone(),
                name: name.to_owned(),
                owner: name.to_owned(),
                version: 1,
                created: draft.now,
                updated: draft.now,
                tags: BTreeMap::new(),
            };
            draft.put(AnyObject::new(metadata, Spec::Principal(PrincipalSpec { role: Role::Operator })));
            new_token(draft, id).map(Some)
        })
    }
}

impl<'s> Draft<'s> {
    /// The tokens of a principal by digest, as they were.
    fn tokens_of(&self, principal: &str) -> impl Iterator<Item = (&'s String, &'s Credential)> {
        self.kept_tokens().filter(move |(_, credential)| credential.principal == principal)
    }
}

/// The id of the principal, if the caller may have to do with its tokens.
fn holder(draft: &Draft<'_>, caller: &Caller, principal: &str) -> Result<String, Refusal> {
    let own = draft.named(Kind::Principal, "", &caller.principal);
    if let Some(own) = own.filter(|own| own.metadata().name == principal || own.id() == principal) {
        return Ok(own.id().to_owned());
    }
    find(draft, caller, Kind::Principal, principal).map(|object| object.id().to_owned())
}

fn new_token(draft: &mut Draft<'_>, principal: String) -> Result<String, Refusal> {
    let digits = hexadecimal(&random::<32>()?);
    let credential = Credential { principal, created: draft.now };
    draft.tokens.push((digest(digits.as_bytes()), Some(credential)));
    Ok(format!("{TOKEN}{digits}"))
}

fn token_id(digest: &str) -> &str {
    digest.get(..17).unwrap_or(digest)
}
