//! Which of the service's roles a stream is for.

use std::{
    fmt,
    str::FromStr,
    sync::{Arc, LazyLock},
};

use tonic::{
    Status,
    metadata::{Ascii, AsciiMetadataKey, MetadataMap, MetadataValue},
};

use crate::{filter::verdict::Role, telemetry::metrics::RefusedStream};

/// The key of a filter's `initial_metadata` that names its role.
pub const ROLE_KEY: &str = "envoy-cimd-role";

/// The name of a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RoleName {
    /// Document, start, callback and disconnect. That of a filter that names none.
    Endpoints,
    /// MCP requests, which get tokens.
    Traffic,
    /// Answers of upstreams that refuse one.
    Refused,
}

impl RoleName {
    pub const ALL: [Self; 3] = [Self::Endpoints, Self::Traffic, Self::Refused];

    /// As a filter says it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Endpoints => "endpoints",
            Self::Traffic => "traffic",
            Self::Refused => "refused",
        }
    }

    /// How long Envoy is asked to wait where an answer takes a call, in seconds: longer than the call's own deadline,
    /// and no longer than the `max_message_timeout` of the role's filter.
    pub(super) fn patience(self) -> i64 {
        match self {
            Self::Endpoints | Self::Refused => 12,
            Self::Traffic => 24,
        }
    }
}

impl FromStr for RoleName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let role = Self::ALL.into_iter().find(|role| role.name() == text);
        role.ok_or("is `endpoints`, `traffic` or `refused`")
    }
}

impl fmt::Display for RoleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The roles that a listener serves.
#[derive(Clone, Default)]
pub struct Roles {
    pub endpoints: Option<Arc<dyn Role>>,
    pub traffic: Option<Arc<dyn Role>>,
    pub refused: Option<Arc<dyn Role>>,
}

impl fmt::Debug for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let served = RoleName::ALL.into_iter().filter(|name| self.role(*name).is_some());
        f.debug_set().entries(served).finish()
    }
}

impl Roles {
    /// The role that the filter at the other end of a stream has.
    pub(super) fn chosen(&self, metadata: &MetadataMap) -> Result<(RoleName, Arc<dyn Role>), RefusedRole> {
        // Every stream is asked, so the text is made a key once.
        static KEY: LazyLock<AsciiMetadataKey> = LazyLock::new(|| AsciiMetadataKey::from_static(ROLE_KEY));
        let mut values = metadata.get_all(&*KEY).iter();
        let name = match (values.next(), values.next()) {
            (None, _) => RoleName::Endpoints,
            (Some(value), None) => named(value).ok_or(RefusedRole::Unknown)?,
            (Some(_), Some(_)) => return Err(RefusedRole::Unknown),
        };
        let role = self.role(name).ok_or(RefusedRole::NotServed(name))?;
        Ok((name, Arc::clone(role)))
    }

    fn role(&self, name: RoleName) -> Option<&Arc<dyn Role>> {
        match name {
            RoleName::Endpoints => self.endpoints.as_ref(),
            RoleName::Traffic => self.traffic.as_ref(),
            RoleName::Refused => self.refused.as_ref(),
        }
    }
}

fn named(value: &MetadataValue<Ascii>) -> Option<RoleName> {
    value.to_str().ok()?.parse().ok()
}

/// Why a stream has no role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RefusedRole {
    /// There is no such role, or two are named.
    Unknown,
    /// It is not for who reaches this listener.
    NotServed(RoleName),
}

impl RefusedRole {
    pub(super) fn reason(self) -> RefusedStream {
        match self {
            Self::Unknown => RefusedStream::UnknownRole,
            Self::NotServed(_) => RefusedStream::RoleNotServed,
        }
    }

    pub(super) fn status(self) -> Status {
        match self {
            Self::Unknown => Status::invalid_argument(format!("{ROLE_KEY} does not name one role of this service")),
            Self::NotServed(role) => {
                Status::permission_denied(format!("this listener does not serve the role `{role}`"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::{
        request::{Request, Sources},
        verdict::Verdict,
    };

    struct Passes;

    impl Role for Passes {
        fn answer(&self, _: &Request<'_>, _: &Sources<'_>, _: bool) -> Verdict {
            Verdict::Pass
        }
    }

    fn chosen(roles: &Roles, values: &[&[u8]]) -> Result<RoleName, RefusedRole> {
        let mut metadata = MetadataMap::new();
        for value in values {
            metadata.append(ROLE_KEY, MetadataValue::try_from(*value).expect("a header's value"));
        }
        roles.chosen(&metadata).map(|(name, _)| name)
    }

    #[test]
    fn a_stream_has_one_role_that_is_served() {
        let role = || Some(Arc::new(Passes) as Arc<dyn Role>);
        let all = Roles { endpoints: role(), traffic: role(), refused: role() };
        let both = Roles { refused: None, ..all.clone() };
        let (endpoints, traffic) = (Roles { traffic: None, ..both.clone() }, Roles { endpoints: None, ..both.clone() });
        for (roles, values, expected) in [
            (&both, &[][..], Ok(RoleName::Endpoints)),
            (&both, &[&b"endpoints"[..]], Ok(RoleName::Endpoints)),
            (&both, &[b"traffic"], Ok(RoleName::Traffic)),
            (&both, &[b"refused"], Err(RefusedRole::NotServed(RoleName::Refused))),
            (&all, &[b"refused"], Ok(RoleName::Refused)),
            (&all, &[b"traffic"], Ok(RoleName::Traffic)),
            (&all, &[], Ok(RoleName::Endpoints)),
            (&all, &[b"traffic", b"refused"], Err(RefusedRole::Unknown)),
            (&traffic, &[b"traffic"], Ok(RoleName::Traffic)),
            (&endpoints, &[b"traffic"], Err(RefusedRole::NotServed(RoleName::Traffic))),
            (&traffic, &[b"endpoints"], Err(RefusedRole::NotServed(RoleName::Endpoints))),
            (&traffic, &[], Err(RefusedRole::NotServed(RoleName::Endpoints))),
            (&Roles::default(), &[], Err(RefusedRole::NotServed(RoleName::Endpoints))),
            (&both, &[b""], Err(RefusedRole::Unknown)),
            (&both, &[b"Traffic"], Err(RefusedRole::Unknown)),
            (&both, &[b"traffic "], Err(RefusedRole::Unknown)),
            (&both, &[b"endpoints,traffic"], Err(RefusedRole::Unknown)),
            (&both, &[b"traffic", b"traffic"], Err(RefusedRole::Unknown)),
            (&both, &[b"endpoints", b"traffic"], Err(RefusedRole::Unknown)),
            (&both, &[b"\xfftraffic"], Err(RefusedRole::Unknown)),
        ] {
            assert_eq!(chosen(roles, values), expected, "{roles:?} {values:?}");
        }
    }
}
