//! What an operator can say of a route: its keys, and what a source says for each.

/// The metadata namespace that a route's keys live in.
pub const NAMESPACE: &str = "envoy_cimd";

macro_rules! keys {
    ($($(#[$meta:meta])* $key:ident = $name:literal,)*) => {
        /// A key of [`NAMESPACE`]. This list is the only one: what sources say, the config file and `--route` follow it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Key {
            $($(#[$meta])* $key,)*
        }

        impl Key {
            /// All keys, in the order of the variants.
            pub const ALL: [Self; Self::NAMES.len()] = [$(Self::$key),*];
            /// In the order of [`Self::ALL`].
            pub const NAMES: [&str; [$($name),*].len()] = [$($name),*];

            /// As it is written.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$key => $name,)*
                }
            }

            pub(super) fn named(name: &str) -> Option<Self> {
                Self::ALL.into_iter().find(|key| key.name() == name)
            }
        }
    };
}

keys! {
    /// The route's public URL; required.
    From = "from",
    /// The URL of the upstream MCP server; needed to connect.
    To = "to",
    /// A label for logs.
    RouteId = "route_id",
    ClientName = "client_name",
    /// The issuer that the operator pins.
    AuthorizationServer = "authorization_server",
    /// What the upstream calls itself (RFC 8707), where that is another URL than `to`.
    Resource = "resource",
    /// What to ask for, in place of what the upstream says.
    Scope = "scope",
    /// The `prompt` of authorization requests.
    Prompt = "prompt",
}

/// Something for each [`Key`].
#[derive(Clone, Copy, Debug, Default, Hash, PartialEq)]
pub struct Keyed<T>([T; Key::ALL.len()]);

impl<T> Keyed<T> {
    pub fn new(value: impl FnMut(Key) -> T) -> Self {
        Self(Key::ALL.map(value))
    }

    pub fn get(&self, key: Key) -> &T {
        // `Key::ALL` is in the order of the variants, so each key has its place.
        &self.0[key as usize]
    }

    pub fn get_mut(&mut self, key: Key) -> &mut T {
        &mut self.0[key as usize]
    }

    pub fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        Key::ALL.into_iter().zip(&self.0)
    }
}

/// What one source says of a route, unchecked.
pub type RouteMetadata<'a> = Keyed<Option<Field<'a>>>;

/// The value of one key of a route.
#[derive(Clone, Copy, Debug, Hash, PartialEq)]
pub enum Field<'a> {
    Text(&'a str),
    /// A number, list or the like, which no key takes.
    NotText,
}
