//! How a flow ends: it is taken once, and its code redeemed.

use oauth2::{AuthorizationCode, PkceCodeVerifier, RedirectUrl, TokenUrl};

use super::{Embedded, call_failed, flow_failed, store_failed};
use crate::{
    contract::{
        choreographer::{AuthorizationAnswer, Complete},
        error::CompleteError,
        tokens::{TokenOwner, TokenTag},
    },
    exchange::{
        oauth::{failure, refuses_client, registered},
        records::{Bound, FlowRecord, TokenRecord, Tombstone},
        step_up::StepUp,
        token_answer::TokenAnswer,
    },
    model::{
        clock::UnixTime,
        seal::UnsealError,
        secret::{Secret, random},
        upstream::Upstream,
    },
    store::{
        backend::Taken,
        keys::{Context, FlowKey},
        vault::Place,
    },
    telemetry::audit,
};

impl Embedded {
    /// Takes the flow: after this, nobody else can complete it.
    pub(super) async fn take(&self, complete: &Complete) -> Result<FlowRecord, CompleteError> {
        let key = FlowKey::of(&complete.flow_id);
        let context = Context::of(&complete.redirect_uri, &complete.user, &complete.browser_hash);
        let (open, now) = (self.open().await?, self.now());
        let taken = open.store.take_flow(key, context, now).await.map_err(|error| flow_failed(&error))?;
        match taken {
            Taken::Flow(sealed) => own(complete, open.unseal(Place::Flow(&key), &sealed), &context, now).await,
            Taken::WrongContext => Err(CompleteError::WrongContext),
            Taken::Unknown => Err(CompleteError::UnknownFlow),
            Taken::Used(tombstone) => {
                let opened = open.unseal(Place::Tombstone(&key), &tombstone);
                let tombstone: Tombstone = own(complete, opened, &context, now).await?;
                Err(CompleteError::AlreadyUsed { return_to: tombstone.into_return_to() })
            }
        }
    }

    /// What follows once the flow is taken. `iss` is looked at first, on errors too (MCP; RFC 9207, section 2.4).
    pub(super) async fn finish(&self, complete: Complete, record: &FlowRecord) -> Result<(), CompleteError> {
        check_issuer(complete.iss.as_deref(), &record.issuer, record.sends_iss || self.require_iss)?;
        let code = match complete.answer {
            AuthorizationAnswer::Code(code) => code,
            AuthorizationAnswer::Error { error, .. } => {
                return Err(CompleteError::AuthorizationError(registered(&error).into()));
            }
        };
        let token = self.exchange(code, record).await?;
        let owner = TokenOwner {
            user: record.user.clone(),
            client_id: record.client_id.clone(),
            upstream: Upstream { url: record.upstream.clone(), authorization_server: None, resource: None },
        };
        self.tokens.put(&owner, token).await.map_err(|error| store_failed(&error).into())
    }

    /// Redeems the code, once, at the token endpoint that was recorded before the redirect.
    async fn exchange(&self, code: Secret, record: &FlowRecord) -> Result<TokenRecord, CompleteError> {
        let failed = |reason: String| {
            tracing::warn!(issuer = record.issuer, client_id = %record.client_id, reason, "the exchange failed");
            CompleteError::ExchangeFailed(reason.into())
        };
        let credentials = self.tokens.clients.credentials(&record.acts_as, &record.client_id, &record.issuer);
        let client = credentials
            .map_err(|gone| failed(gone.to_string()))?
            .oauth_client()
            .set_token_uri(TokenUrl::new(record.token_endpoint.clone()).map_err(|error| failed(error.to_string()))?)
            .set_redirect_uri(
                RedirectUrl::new(record.redirect_uri.to_string()).map_err(|error| failed(error.to_string()))?,
            );
        let http = self.tokens.http(&record.client_id, self.tokens.deadlines.token_endpoint);
        let answer: Result<TokenAnswer, _> = client
            .exchange_code(AuthorizationCode::new(code.expose().to_owned()))
            .set_pkce_verifier(PkceCodeVerifier::new(record.verifier.expose().to_owned()))
            .add_extra_param("resource", &record.resource)
            .request_async(&http)
            .await;
        if answer.as_ref().is_err_and(refuses_client) {
            self.tokens.client_refused(&record.acts_as, &record.client_id, &record.issuer).await;
        }
        let answer = answer.map_err(|error| failed(failure(&error)))?;
        let granted = answer.granted().map_err(|reason| failed(reason.to_owned()))?;
        granted.note_unread(&record.issuer);
        let now = self.now();
        Ok(TokenRecord {
            expires_at: granted.expires_at(now),
            access_token: granted.access_token,
            refresh_token: granted.refresh_token,
            issued_at: now,
            since: Some(now),
            scope: granted.scope.or_else(|| record.scope.clone()),
            issuer: record.issuer.clone(),
            token_endpoint: record.token_endpoint.clone(),
            revocation_endpoint: record.revocation_endpoint.clone(),
            resource: record.resource.clone(),
            client_id: record.client_id.clone(),
            tag: Some(TokenTag(random().map_err(call_failed)?)),
            refused: None,
            ended: false,
            step_up: StepUp::default(),
            acts_as: record.acts_as.clone(),
        })
    }
}

/// What was sealed for a flow, where it is of who completes it. Its context was compared before, but in the clear, where
/// whoever writes the store can change it.
async fn own<T: Bound>(
    complete: &Complete,
    opened: Result<(T, bool), UnsealError>,
    context: &Context,
    now: UnixTime,
) -> Result<T, CompleteError> {
    let error = match opened {
        Ok((record, _)) if record.binding().is_none_or(|binding| binding.holds(context, now)) => return Ok(record),
        Ok(_) => CompleteError::WrongContext,
        Err(error) => {
            tracing::error!(%error, "a stored record cannot be opened");
            let failed = call_failed(format_args!("a stored record cannot be opened: {error}")).into();
            match error {
                UnsealError::DoesNotOpen => failed,
                _ => return Err(failed),
            }
        }
    };
    audit::event("isolation_violation", &complete.user, "", "", Some(&complete.flow_id), "refused").await;
    Err(error)
}

/// Whether an answer may be the recorded issuer's: `iss` is the same, byte for byte, and there where it must be.
fn check_issuer(iss: Option<&str>, recorded: &str, must_be_there: bool) -> Result<(), CompleteError> {
    match iss {
        Some(iss) if iss == recorded => Ok(()),
        None if !must_be_there => Ok(()),
        Some(_) => Err(CompleteError::IssuerMismatch(format!("`iss` is not {recorded}").into())),
        None => Err(CompleteError::IssuerMismatch("`iss` is missing, and has to be there".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn issuers_are_compared_as_they_stand() {
        let recorded = "https://as.example";
        for (iss, must_be_there, good) in [
            (Some(recorded), true, true),
            (Some(recorded), false, true),
            (Some("https://as.example/"), false, false),
            (Some("https://as.example:443"), false, false),
            (Some("https://AS.example"), false, false),
            (Some("https://other.example"), true, false),
            (Some(""), false, false),
            (None, false, true),
            (None, true, false),
        ] {
            assert_eq!(check_issuer(iss, recorded, must_be_there).is_ok(), good, "{iss:?} {must_be_there}");
        }
    }
}
