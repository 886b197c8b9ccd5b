//! Texts for YAML.

use serde::Serialize;

/// A value as JSON, which is YAML too, so that nothing in it can break out of its place.
pub fn quoted<T: Serialize + ?Sized>(value: &T) -> String {
    let json = serde_json::to_string(value).unwrap_or_default();
    // What JSON takes as it is and YAML does not.
    ['\u{7f}', '\u{85}', '\u{2028}', '\u{2029}', '\u{feff}']
        .iter()
        .fold(json, |json, char| json.replace(*char, &format!("\\u{:04x}", u32::from(*char))))
}
