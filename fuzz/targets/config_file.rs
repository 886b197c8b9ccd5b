//! The config file: its routes are found by the authority and the path of their `from`.

#![no_main]

use std::sync::LazyLock;

use envoy_cimd::{
    commands::{config_file::ConfigFile, settings::parse::setting_keys},
    model::paths::Paths,
};
use libfuzzer_sys::fuzz_target;

static KEYS: LazyLock<Vec<String>> = LazyLock::new(setting_keys);

fuzz_target!(|text: &str| {
    let Ok(file) = ConfigFile::parse(text, &KEYS) else { return };
    for key in file.settings.keys() {
        assert!(KEYS.contains(key));
        let _ = file.values(key);
    }
    let Ok(table) = file.route_table(&Paths::default()) else { return };
    let routes: Vec<_> = file.routes.iter().map(|spec| spec.route().expect("the table took it")).collect();
    for route in &routes {
        let origin = route.from.origin();
        let found = |authority: &str| table.host(authority).and_then(|host| host.at(route.from.path()));
        assert_eq!(found(&format!("{}:{}", origin.host(), origin.port())).map(|found| &found.from), Some(&route.from));
        assert!(table.host(origin.host()).is_some());
        let has_https = routes.iter().any(|other| {
            let other = other.from.origin();
            other.host() == origin.host() && other.port() == 443
        });
        assert!(!has_https || table.is_default(origin) == (origin.port() == 443), "no port means port 443");
    }
});
