//! With an authorization server that nobody here wrote. `make e2e` runs these: they need Node.js.

use std::{path::Path, process::Command};

use crate::world::{Wish, World};

/// Runs a script of `tests/e2e` beside its modules, with what it must know of the world.
fn node(script: &str, world: &World, routes: &[&str]) {
    let modules = std::env::var("E2E_MODULES").expect("`make e2e` sets E2E_MODULES");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e").join(script);
    let copy = Path::new(&modules).join(script);
    std::fs::copy(source, &copy).expect("the script");
    let output = Command::new("node")
        .arg(copy)
        .env("E2E_CA", &world.certificates.ca)
        .env("E2E_ENVOY_PORT", world.envoy.https.port().to_string())
        .env("E2E_ROUTES", serde_json::to_string(routes).expect("JSON"))
        .output()
        .expect("node runs");
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    println!("{}", text(&output.stdout));
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
}

#[tokio::test]
#[ignore = "needs Node.js: make e2e"]
async fn e2e_oidc_provider_takes_the_documents() {
    let routes = ["https://notes.localhost", "https://tickets.localhost:8443"];
    let wishes = routes.map(|from| format!("from={from}"));
    let world = World::start(Wish { routes: &wishes.each_ref().map(String::as_str), ..Wish::default() }).await;
    node("oidc_provider.mjs", &world, &routes);
}
