//! How a person's connection through a route stands, for the page that shows it to them.

use super::{
    proto::{self, describe_connection_response},
    wire::{time, timestamp},
};
use crate::model::{clock::UnixTime, scope::Scope};

/// Whether there is a connection, and what the next authorization would ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    pub state: ConnectionState,
    /// None while it is not known.
    pub next: Option<NextAuthorization>,
}

/// How a connection stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectionState {
    /// They never connected, disconnected, or are connected to another authorization server than the route's.
    Never,
    /// The grant ended by itself.
    Lost,
    Connected(Granted),
}

/// What a person allowed, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// When they last did; none where a version before this one stored it.
    pub since: Option<UnixTime>,
    /// The authorization server's words; empty where it does not say.
    pub scope: Scope,
    pub issuer: String,
}

/// What would be asked for: the upstream's words, unless the operator says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NextAuthorization {
    /// Empty where nothing in particular is.
    pub scope: Scope,
    /// What of it goes beyond what the person has. Empty where they have nothing.
    pub added: Scope,
}

impl From<Connection> for proto::DescribeConnectionResponse {
    fn from(Connection { state, next }: Connection) -> Self {
        use describe_connection_response::State;
        let state = match state {
            ConnectionState::Never => State::Never(proto::NeverConnected {}),
            ConnectionState::Lost => State::Lost(proto::LostConnection {}),
            ConnectionState::Connected(Granted { since, scope, issuer }) => State::Connected(proto::Connected {
                since: since.and_then(timestamp),
                scope: scope.to_string(),
                issuer,
            }),
        };
        let next = next.map(|NextAuthorization { scope, added }| proto::NextAuthorization {
            scope: scope.to_string(),
            added: added.to_string(),
        });
        Self { state: Some(state), next }
    }
}

/// None where the answer keeps no contract.
pub(super) fn connection(response: proto::DescribeConnectionResponse) -> Option<Connection> {
    use describe_connection_response::State;
    let scope = |text: &str| Scope::of([text]);
    let state = match response.state? {
        State::Never(_) => ConnectionState::Never,
        State::Lost(_) => ConnectionState::Lost,
        State::Connected(connected) => ConnectionState::Connected(Granted {
            since: connected.since.and_then(time),
            scope: scope(&connected.scope),
            issuer: connected.issuer,
        }),
    };
    let next = response.next.map(|next| NextAuthorization { scope: scope(&next.scope), added: scope(&next.added) });
    Some(Connection { state, next })
}
