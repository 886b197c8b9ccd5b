//! The config file: its routes are found by the authority of their origin.

#![no_main]

use std::sync::LazyLock;

use envoy_cimd::commands::{config_file::ConfigFile, settings::parse::setting_keys};
use libfuzzer_sys::fuzz_target;

static KEYS: LazyLock<Vec<String>> = LazyLock::new(setting_keys);

fuzz_target!(|text: &str| {
    let Ok(file) = ConfigFile::parse(text, &KEYS) else { return };
    for key in file.settings.keys() {
        assert!(KEYS.contains(key));
        let _ = file.values(key);
    }
    let Ok(table) = file.route_table() else { return };
    for spec in &file.routes {
        let origin = spec.route().expect("the table took it").origin;
        let authority = format!("{}:{}", origin.host(), origin.port());
        assert_eq!(table.find(&authority).map(|route| &route.origin), Some(&origin));
        assert!(table.find(origin.host()).is_some());
    }
});
