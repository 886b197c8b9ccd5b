//! What is allowed, and does nothing: where nobody can connect, and settings that have no effect beside others.

use super::{
    roles::Served,
    settings::{
        ChoreographerCommand,
        parse::Given,
        serve::Serve,
        shared::{ExchangeArgs, ProcessArgs},
    },
};
use crate::net::{dial::GrpcUrl, listen::ListenAddr};

/// What settings have no effect beside.
struct Idle {
    settings: &'static [&'static str],
    /// What takes their effect away, for who reads a warning.
    beside: &'static str,
    is_so: fn(&Of<'_>) -> bool,
}

/// All that a row looks at.
struct Of<'a> {
    /// None for `choreographer`.
    serve: Option<(&'a Serve, &'a Served)>,
    listen: &'a ListenAddr,
    exchange: &'a ExchangeArgs,
    process: &'a ProcessArgs,
}

impl Of<'_> {
    fn settings(&self, is_so: impl FnOnce(&Serve) -> bool) -> bool {
        self.serve.is_some_and(|(settings, _)| is_so(settings))
    }

    fn roles(&self, is_so: impl FnOnce(&Served) -> bool) -> bool {
        self.serve.is_some_and(|(_, roles)| is_so(roles))
    }

    /// Whether nobody speaks plain gRPC over TCP to us, or we to the choreographer.
    fn needs_no_plain_grpc(&self) -> bool {
        let calls_plain = |settings: &Serve| matches!(settings.choreographer, Some(GrpcUrl::Tcp { tls: false, .. }));
        let is_protected = matches!(self.listen, ListenAddr::Unix(_)) || self.process.tls.is_given();
        is_protected && !self.settings(calls_plain)
    }
}

/// What is for the exchange, wherever that is.
const OF_EXCHANGE: &[&str] = &[
    "store",
    "state_dir",
    "encryption_keys",
    "allow_host",
    "extra_ca",
    "require_iss",
    "dynamic_registration",
    "token_endpoint_timeout",
    "patience",
    "refresh_claim",
    "max_flows",
    "max_flows_per_user",
    "max_lookups",
    "max_lookups_per_user",
    "max_lookups_per_host",
    "tokens_socket_mode",
];

/// The first row of a setting that holds is the one that is said.
const ROWS: &[Idle] = &[
    Idle {
        settings: OF_EXCHANGE,
        beside: "--choreographer: it is that process's to have",
        is_so: |of| of.settings(|settings| settings.choreographer.is_some()),
    },
    Idle {
        settings: &["insecure_traffic"],
        beside: "a --listen that is a Unix socket or has TLS",
        is_so: |of| matches!(of.listen, ListenAddr::Unix(_)) || of.process.tls.is_given(),
    },
    Idle {
        settings: &["insecure_traffic", "token_cache", "max_cached_tokens", "max_holds", "allow_origin"],
        beside: "a listener that serves neither traffic nor refused (--roles)",
        is_so: |of| of.roles(|roles| !roles.traffic && !roles.refused),
    },
    Idle {
        settings: &["max_cached_tokens"],
        beside: "--token-cache 0",
        is_so: |of| of.settings(|settings| settings.traffic.config().token_cache.is_zero()),
    },
    Idle {
        settings: &["client_name", "document_max_age", "brand_name", "brand_help_url", "display_claim"],
        beside: "a listener that does not serve endpoints (--roles)",
        is_so: |of| of.roles(|roles| !roles.endpoints),
    },
    Idle {
        settings: &["insecure_grpc"],
        beside: "a --listen that is a Unix socket or has TLS, where no --choreographer is http://",
        is_so: |of| of.needs_no_plain_grpc(),
    },
    Idle {
        settings: &["max_calls_per_user"],
        beside: "a --max-calls that is not above it",
        is_so: |of| of.settings(|settings| settings.limits.max_calls_per_user >= settings.limits.max_calls),
    },
    Idle {
        settings: &["max_calls_per_upstream"],
        beside: "a --max-calls that is not above it",
        is_so: |of| of.settings(|settings| settings.limits.max_calls_per_upstream >= settings.limits.max_calls),
    },
    Idle {
        settings: &["state_dir"],
        beside: "--store, which says where the store is",
        is_so: |of| of.exchange.store.is_some(),
    },
    Idle {
        settings: &["socket_mode"],
        beside: "a --listen that is not a Unix socket",
        is_so: |of| matches!(of.listen, ListenAddr::Tcp { .. }),
    },
    Idle {
        settings: &["tokens_socket_mode"],
        beside: "a --tokens-listen that is not a Unix socket, or none",
        is_so: |of| !matches!(of.exchange.tokens_listen, Some(ListenAddr::Unix(_))),
    },
    Idle {
        settings: &["max_flows_per_user"],
        beside: "a --max-flows that is not above it",
        is_so: |of| of.exchange.max_flows_per_user >= of.exchange.max_flows,
    },
    Idle {
        settings: &["max_lookups_per_user"],
        beside: "a --max-lookups that is not above it",
        is_so: |of| of.exchange.max_lookups_per_user >= of.exchange.max_lookups,
    },
    Idle {
        settings: &["max_lookups_per_host"],
        beside: "a --max-lookups that is not above it",
        is_so: |of| of.exchange.max_lookups_per_host >= of.exchange.max_lookups,
    },
];

/// What `serve` and `check` say of the settings of `serve`.
pub fn of_serve(settings: &Serve, roles: &Served, given: &Given) -> Vec<String> {
    let mut notices = Vec::new();
    if roles.endpoints && !settings.single_user && settings.routes.user_namespace.is_none() {
        notices.push(
            "nobody can connect: neither --user-namespace, --user-issuer and --user-subject nor --single-user says who \
             people are, so documents alone are served"
                .to_owned(),
        );
    }
    let Serve { listen, exchange, process, .. } = settings;
    notices.extend(idle(&Of { serve: Some((settings, roles)), listen, exchange, process }, given));
    notices
}

/// What `choreographer` says of its settings.
pub fn of_choreographer(settings: &ChoreographerCommand, given: &Given) -> Vec<String> {
    let ChoreographerCommand { listen, exchange, process, .. } = settings;
    idle(&Of { serve: None, listen, exchange, process }, given)
}

fn idle(of: &Of<'_>, given: &Given) -> Vec<String> {
    let mut unsaid = given.clone();
    let mut notices = Vec::new();
    for Idle { settings, beside, .. } in ROWS.iter().filter(|row| (row.is_so)(of)) {
        let said = settings.iter().filter(|setting| unsaid.remove(**setting));
        notices.extend(said.map(|setting| format!("--{} has no effect beside {beside}", setting.replace('_', "-"))));
    }
    notices
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::commands::{
        roles::roles,
        settings::{Task, parse::parse},
    };

    /// Settings that do something whatever the others are, or are refused where they would not.
    const ALWAYS: &[&str] = &[
        "config",
        "listen",
        "admin_listen",
        "choreographer",
        "choreographer_ca",
        "choreographer_cert",
        "choreographer_key",
        "choreographer_peer",
        "tokens",
        "tokens_ca",
        "tokens_cert",
        "tokens_key",
        "tokens_peer",
        "roles",
        "state_keys",
        "single_user",
        "user_namespace",
        "user_issuer",
        "user_subject",
        "document_path",
        "callback_path",
        "dynamic_metadata",
        "tokens_listen",
        "tokens_allow_peer",
        "tls_cert",
        "tls_key",
        "client_ca",
        "allow_peer",
        "threads",
        "ready_needs_exchange",
        "drain_delay",
        "drain_timeout",
        "otlp_endpoint",
        "log",
        "max_streams",
        "max_calls",
        "max_header_bytes",
        "max_query_bytes",
    ];

    fn said(args: &[&str]) -> Vec<String> {
        let all = ["envoy-cimd"].iter().chain(args).map(Into::into);
        let parsed = parse(all).expect("a good command line");
        match parsed.task {
            Task::Serve(settings) => {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                let roles = runtime.block_on(roles(&settings)).expect("roles");
                of_serve(&settings, &roles, &parsed.given)
            }
            Task::Choreographer(settings) => of_choreographer(&settings, &parsed.given),
            _ => panic!("{args:?}"),
        }
    }

    #[test]
    fn what_has_no_effect_is_said_once_and_what_has_is_not() {
        const UNIX: &[&str] = &["serve", "--single-user", "--listen", "unix:/s"];
        const TCP: &[&str] = &["serve", "--single-user"];
        const FAR: &[&str] = &["serve", "--single-user", "--choreographer", "unix:/c", "--state-keys", "k"];
        const EXCHANGE: &[&str] = &["choreographer"];
        let all = |base: &[&'static str], more: &[&'static str]| said(&[base, more].concat());
        for (base, more, setting, beside) in [
            (FAR, &["--store", "file:/a"][..], "store", "--choreographer"),
            (FAR, &["--state-dir", "/a"], "state-dir", "--choreographer"),
            (FAR, &["--encryption-keys", "/a"], "encryption-keys", "--choreographer"),
            (FAR, &["--require-iss"], "require-iss", "--choreographer"),
            (FAR, &["--max-flows", "7"], "max-flows", "--choreographer"),
            (TCP, &["--state-dir", "/a", "--store", "file:/b"], "state-dir", "--store"),
            (EXCHANGE, &["--state-dir", "/a", "--store", "file:/b"], "state-dir", "--store"),
            (TCP, &["--socket-mode", "600"], "socket-mode", "a --listen that is not a Unix socket"),
            (UNIX, &["--tokens-socket-mode", "660"], "tokens-socket-mode", "a --tokens-listen"),
            (UNIX, &["--insecure-traffic"], "insecure-traffic", "a --listen that is a Unix socket"),
            (UNIX, &["--insecure-grpc"], "insecure-grpc", "a --listen that is a Unix socket"),
            (EXCHANGE, &["--listen", "unix:/c", "--insecure-grpc"], "insecure-grpc", "a --listen"),
            (TCP, &["--token-cache", "1"], "token-cache", "a listener that serves neither"),
            (UNIX, &["--token-cache", "0", "--max-cached-tokens", "9"], "max-cached-tokens", "--token-cache 0"),
            (UNIX, &["--roles", "traffic", "--brand-name", "A"], "brand-name", "a listener that does not"),
            (TCP, &["--max-calls", "9", "--max-calls-per-user", "9"], "max-calls-per-user", "a --max-calls"),
            (TCP, &["--max-calls-per-upstream", "1000"], "max-calls-per-upstream", "a --max-calls"),
            (TCP, &["--max-flows", "9", "--max-flows-per-user", "10"], "max-flows-per-user", "a --max-flows"),
            (TCP, &["--max-lookups-per-user", "100"], "max-lookups-per-user", "a --max-lookups"),
            (TCP, &["--max-lookups-per-host", "100"], "max-lookups-per-host", "a --max-lookups"),
        ] {
            let notices = all(base, more);
            let start = format!("--{setting} has no effect beside {beside}");
            assert!(matches!(&notices[..], [one] if one.starts_with(&start)), "{base:?} {more:?}: {notices:?}");
        }
        for (base, more) in [
            (UNIX, &["--token-cache", "1", "--max-cached-tokens", "9", "--allow-origin", "https://a.example"][..]),
            (UNIX, &["--socket-mode", "600", "--tokens-listen", "unix:/t", "--tokens-socket-mode", "600"]),
            (TCP, &["--insecure-traffic", "--max-holds", "5", "--brand-name", "A", "--store", "file:/b"]),
            (TCP, &["--insecure-grpc", "--listen", "0.0.0.0:0", "--max-calls", "19"]),
            (FAR, &["--max-calls", "100", "--max-calls-per-user", "10"]),
            (EXCHANGE, &["--state-dir", "/a", "--max-flows", "9", "--insecure-grpc"]),
        ] {
            assert_eq!(all(base, more), [] as [&str; 0], "{base:?} {more:?}");
        }
        let nobody = said(&["serve"]);
        assert!(matches!(&nobody[..], [one] if one.starts_with("nobody can connect")), "{nobody:?}");
    }

    /// A setting that is added is either in a row, or somebody said that it always does something.
    #[test]
    fn each_setting_was_thought_of() {
        let command = <crate::commands::settings::Cli as clap::CommandFactory>::command();
        let ids = |name: &str| -> BTreeSet<String> {
            let found = command.get_subcommands().find(|command| command.get_name() == name).expect(name);
            found.get_arguments().filter(|arg| arg.get_env().is_some()).map(|arg| arg.get_id().to_string()).collect()
        };
        let in_rows = ROWS.iter().flat_map(|row| row.settings);
        let named: BTreeSet<String> = in_rows.chain(ALWAYS).map(|&name| name.to_owned()).collect();
        let there: BTreeSet<String> = ids("serve").union(&ids("choreographer")).cloned().collect();
        assert_eq!(there, named);
    }
}
