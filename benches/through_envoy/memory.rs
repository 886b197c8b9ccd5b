//! What stays in memory.

use std::{sync::Arc, time::Duration};

use envoy_cimd::{
    filter::{endpoint, traffic},
    model::trace::Trace,
};

use crate::{
    ROUTES, executable,
    one_token::OneToken,
    people::{authorization, owner},
    report,
    stack::{
        Cimd,
        grpc::{channel, fetch_documents},
        resident,
    },
};

pub async fn measure() {
    println!("\n## Memory");
    documents().await;
    tokens().await;
}

/// A hundred thousand routes, ten times each: resident memory is what a request needs, not what there was.
async fn documents() {
    const TIMES: usize = 10;
    let cimd = Cimd::start(&executable(), &[]).await;
    let channel = channel(&cimd.ext_proc).await;
    let mut kib = vec![resident(cimd.process.pid())];
    for _ in 0..TIMES {
        fetch_documents(&channel, 0..ROUTES).await;
        kib.push(resident(cimd.process.pid()));
    }
    println!("\nResident at the start, and after each 100,000 requests for as many routes, in KiB: {kib:?}");
    let last = kib.last().copied().unwrap_or_default();
    println!("After a million requests at most 32 MiB: {}.", report::mark(last <= 32 * 1024));
}

/// As many tokens as are kept by default, and three times as many more: those that are kept, and nothing of the others.
async fn tokens() {
    let config = traffic::Config { token_cache: Duration::from_secs(3600), ..traffic::Config::default() };
    let most = config.max_cached_tokens;
    let tokens = Arc::new(OneToken(authorization(0).split_off("Bearer ".len())));
    let cached = config.cached(tokens, endpoint::Config::default().limits.calls, Default::default());
    let mut kib = vec![resident(std::process::id())];
    for people in [0..most, most..2 * most, 2 * most..3 * most, 3 * most..4 * most] {
        for person in people {
            let owner = owner(usize::try_from(person).expect("few"), "https://upstream.bench.example/mcp");
            cached.look_up(&owner, &Trace::default()).expect("a share").await.expect("a token");
        }
        cached.tidy();
        kib.push(resident(std::process::id()));
    }
    let length = authorization(0).len();
    println!(
        "\nResident without, and after each {most} tokens of {length} bytes that were looked up, of which as many are \
         kept, in KiB: {kib:?}"
    );
    let each = (kib[1] - kib[0]) as f64 / (most as f64 / 1000.0);
    println!(
        "That is {each:.0} KiB for 1,000 tokens, and bounded: {}.",
        report::mark(kib[4] - kib[0] <= (kib[1] - kib[0]) * 3 / 2)
    );
}
