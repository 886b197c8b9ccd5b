//! The processes of ours that `serve` calls, as settings and log lines name them.

/// A process that is called.
#[derive(Debug)]
pub struct Callee {
    /// What log lines call it.
    pub name: &'static str,
    /// The setting of its address. With `-ca`, `-cert`, `-key` and `-peer` behind it, those of its TLS.
    pub flag: &'static str,
    /// What metrics and log lines call the files of its TLS.
    pub files: &'static str,
}

/// What runs the exchange.
pub static CHOREOGRAPHER: Callee =
    Callee { name: "the choreographer", flag: "choreographer", files: "choreographer_tls" };

/// What hands tokens out.
pub static TOKENS: Callee = Callee { name: "the service of tokens", flag: "tokens", files: "tokens_client_tls" };
