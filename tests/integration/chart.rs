//! The Helm chart: its schema knows our settings, and what it renders is what the program takes.
//!
//! `make manifests` renders it, and runs the tests that are `#[ignore]`d here on what came of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use clap::CommandFactory;
use envoy_cimd::{
    commands::settings::{Cli, parse::setting_keys},
    model::{route::Key, secret::generate_key_line},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    manifests::{documents, file},
    stack::{Authority, Process, ready_address, set_mode},
    world::{executable, run, shell},
};

fn yaml(path: &str) -> Value {
    serde_saphyr::from_str(&file(path)).expect(path)
}

/// A list of words in a template of this name.
fn words(template: &str) -> BTreeSet<String> {
    let text = file("envoy/helm/templates/_config.tpl");
    let start = format!("{{{{- define \"{template}\" -}}}}\n");
    let words = text.split(&start).nth(1).and_then(|rest| rest.split("{{").next()).expect(template);
    words.split_whitespace().map(str::to_owned).collect()
}

fn properties(schema: &Value) -> BTreeSet<String> {
    schema["properties"].as_object().expect("properties").keys().cloned().collect()
}

#[test]
fn the_version_is_the_programs() {
    let chart = yaml("envoy/helm/Chart.yaml");
    assert_eq!((&chart["version"], &chart["appVersion"]), (&json!(env!("CARGO_PKG_VERSION")), &chart["version"]));
}

/// A setting that is added is either a value, or somebody said that the chart sets it.
#[test]
fn each_setting_was_thought_of() {
    let schema: Value = serde_json::from_str(&file("envoy/helm/values.schema.json")).expect("JSON");
    let values = properties(&schema["properties"]["config"]);
    let owned = words("envoy-cimd.owned");
    assert!(values.is_disjoint(&owned));
    let all: BTreeSet<String> = setting_keys().into_iter().chain(["config".to_owned()]).collect();
    let of_serve_and_choreographer: BTreeSet<String> = values.union(&owned).cloned().collect();
    let command = Cli::command();
    let ids = |name: &str| -> BTreeSet<String> {
        let found = command.get_subcommands().find(|command| command.get_name() == name).expect(name);
        found.get_arguments().filter(|arg| arg.get_env().is_some()).map(|arg| arg.get_id().to_string()).collect()
    };
    let (serve, choreographer) = (ids("serve"), ids("choreographer"));
    assert_eq!(of_serve_and_choreographer, serve.union(&choreographer).cloned().collect());
    assert!(of_serve_and_choreographer.is_subset(&all));
    // Each of the two gets what is for it.
    let (exchange, both) = (words("envoy-cimd.ofExchange"), words("envoy-cimd.ofAll"));
    assert!(exchange.is_disjoint(&both));
    assert_eq!(exchange.union(&both).cloned().collect::<BTreeSet<_>>(), &choreographer - &owned);
    assert!(both.is_subset(&serve));

    let routes = properties(&schema["properties"]["routes"]["items"]);
    assert_eq!(routes, Key::NAMES.into_iter().map(str::to_owned).collect());
}

#[tokio::test]
async fn what_is_committed_runs() {
    for path in ["envoy/kubernetes/envoy-cimd.yaml", "envoy/gateway/sidecar.yaml"] {
        assert_eq!(Installed::new(&file(path)).run(path).await, ["serve"]);
    }
}

/// What the page says to do first can be done, and makes the Secrets that are needed.
#[test]
fn the_page_makes_the_secrets() {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("redis-ca.crt"), "").expect("written");
    let page = file("docs/deploy.md");
    let commands = page.split("**Secrets first.**").nth(1).and_then(|rest| rest.split("```").nth(1)).expect("a block");
    let commands = commands.strip_prefix("sh\n").expect("a shell's");
    let asked = asked(commands, dir.path());
    assert_eq!(
        asked,
        "create namespace envoy-cimd\n\
         label namespace envoy-cimd pod-security.kubernetes.io/enforce=restricted\n\
         -n envoy-cimd create secret generic envoy-cimd-keys --from-file state.keys --from-file encryption.keys\n\
         -n envoy-cimd create secret generic envoy-cimd-store --from-file url --from-file ca.crt=redis-ca.crt\n"
    );
    let documents = documents(&file("envoy/kubernetes/envoy-cimd.yaml"));
    let needed: BTreeSet<String> = documents.iter().filter_map(pod).flat_map(|pod| needed(&pod)).collect();
    // The first is a ConfigMap of the chart's; the page names the last.
    let expected = ["envoy-cimd", "envoy-cimd-keys", "envoy-cimd-store", "envoy-cimd-tls"];
    assert_eq!(needed.iter().collect::<Vec<_>>(), expected);
}

/// What commands asked of a cluster that is not there, and whose ConfigMaps are files.
fn asked(commands: &str, dir: &Path) -> String {
    let kubectl = r#"kubectl() { printf '%s\n' "$*" >> asked; case "$3" in get) cat "$5.config";; esac; }"#;
    shell(&format!("{kubectl}\n{commands}"), dir);
    std::fs::read_to_string(dir.join("asked")).expect("asked")
}

/// Every rendering, with real processes, real keys and real certificates; no Redis.
#[tokio::test]
#[ignore = "make manifests"]
async fn what_is_rendered_runs() {
    let mut ran = BTreeMap::new();
    for (name, text) in rendered("yaml") {
        ran.insert(name.clone(), Installed::new(&text).run(&name).await);
    }
    assert!(ran.len() >= 10, "{ran:?}");
    assert_eq!(ran["choreographer"], ["choreographer", "serve"]);
    assert_eq!(ran["everything"], ["choreographer", "serve"]);
}

/// What `helm install` tells people to do next can be done, and names all that the pods need.
#[test]
#[ignore = "make manifests"]
fn the_notes_can_be_followed() {
    let manifests = rendered("yaml");
    for (name, notes) in rendered("txt") {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("redis-ca.crt"), "").expect("written");
        let documents = documents(&manifests[&name]);
        for object in documents.iter().filter(|object| object["kind"] == "ConfigMap") {
            let path = dir.path().join(format!("{}.config", text(&object["metadata"]["name"])));
            std::fs::write(path, text(&object["data"]["envoy-cimd.yaml"])).expect("written");
        }
        let commands: Vec<&str> = notes.lines().filter_map(|line| line.strip_prefix("    ")).collect();
        assert!(commands.iter().any(|command| command.contains("keygen")), "{name}: {notes}");
        let asked = asked(&commands.join("\n"), dir.path());
        for line in asked.lines() {
            for source in line.split("--from-file ").skip(1) {
                let path = source.split('=').nth(1).expect("a file").trim();
                assert!(dir.path().join(path).exists(), "{name}: {line}");
            }
        }
        let pods: Vec<Value> = documents.iter().filter_map(pod).collect();
        let envoy = pods
            .iter()
            .flat_map(containers)
            .find(|container| container["name"] == "envoy" && !container["ports"].is_null());
        if let Some(envoy) = envoy {
            let printed = std::fs::read_to_string(dir.path().join("envoy.yaml")).expect("Envoy's configuration");
            let port = format!("\"port_value\":{}}}", envoy["ports"][0]["containerPort"]);
            assert!(printed.contains(&port), "{name}: {port}");
            assert!(printed.contains("{\"path\":\"/run/envoy-cimd/ext_proc.sock\"}"), "{name}");
        }
        let named = pods.iter().flat_map(needed).collect::<BTreeSet<_>>();
        let made: BTreeSet<&str> =
            documents.iter().filter_map(|document| document["metadata"]["name"].as_str()).collect();
        assert!(!named.is_empty(), "{name}");
        let words: BTreeSet<&str> = notes.split_whitespace().map(|word| word.trim_end_matches([':', ','])).collect();
        for needed in named.iter().filter(|needed| !made.contains(needed.as_str())) {
            assert!(words.contains(needed.as_str()), "{name}: {needed}");
        }
    }
}

/// What `make manifests` rendered, by name.
fn rendered(extension: &str) -> BTreeMap<String, String> {
    let folder = std::env::var("RENDERED").expect("RENDERED is set by `make manifests`");
    let paths = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("a file").path());
    let paths = paths.filter(|path| path.extension().is_some_and(|found| found == extension));
    let name = |path: &Path| path.file_stem().and_then(|name| name.to_str()).expect("text").to_owned();
    paths.map(|path| (name(&path), std::fs::read_to_string(&path).expect("text"))).collect()
}

/// The pod of a Deployment, or what an EnvoyProxy adds to one.
fn pod(document: &Value) -> Option<Value> {
    let deployment = match document["kind"].as_str()? {
        "Deployment" => document,
        "EnvoyProxy" => &document["spec"]["provider"]["kubernetes"]["envoyDeployment"]["patch"]["value"],
        _ => return None,
    };
    Some(deployment["spec"]["template"]["spec"].clone())
}

/// The Secrets and ConfigMaps that a pod needs, but for volumes that are not the chart's.
fn needed(pod: &Value) -> Vec<String> {
    let volumes = list(&pod["volumes"]).iter().filter(|volume| text(&volume["name"]).starts_with("envoy"));
    let volumes = volumes.flat_map(|volume| [&volume["secret"]["secretName"], &volume["configMap"]["name"]]);
    let variables = containers(pod).flat_map(|container| list(&container["env"]));
    let variables = variables.map(|variable| &variable["valueFrom"]["secretKeyRef"]["name"]);
    volumes.chain(variables).filter_map(Value::as_str).map(str::to_owned).collect()
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    list(&pod["containers"]).iter().chain(list(&pod["initContainers"]))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().expect("text")
}

/// Objects as a cluster would have them, with a folder for what pods mount.
struct Installed {
    dir: TempDir,
    authority: Authority,
    documents: Vec<Value>,
}

/// A container of ours, with its files in place.
struct Container {
    args: Vec<String>,
    variables: Vec<(String, String)>,
    config: Value,
    path: PathBuf,
}

impl Installed {
    fn new(text: &str) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let authority = Authority::make(dir.path());
        Self { dir, authority, documents: documents(text) }
    }

    /// Runs every container of ours until each is ready, and `serve` reaches its choreographer. Which there were.
    async fn run(&self, name: &str) -> Vec<String> {
        let mut containers: Vec<Container> =
            self.documents.iter().filter_map(pod).map(|pod| self.container(&pod)).collect();
        containers.sort_by(|one, other| one.args[0].cmp(&other.args[0]));
        let mut running = Vec::new();
        let mut choreographer = None;
        for container in &containers {
            let mut config = container.config.clone();
            let command = container.args[0].as_str();
            if command == "serve" {
                container.check(name);
            }
            let here = config["choreographer"].is_null();
            let has_store = container.variables.iter().any(|(name, _)| name == "ENVOY_CIMD_STORE");
            let stores = [!here, has_store, !config["state_dir"].is_null()];
            assert_eq!(stores.iter().filter(|is_one| **is_one).count(), 1, "{name}: one store: {config}");
            assert_eq!(config["encryption_keys"].is_null(), !here, "{name}");
            if let Some((address, tokens)) = &choreographer {
                config["choreographer"] = json!(format!("https://{address}"));
                if !config["tokens"].is_null() {
                    config["tokens"] = json!(format!("https://{tokens}"));
                }
            }
            for listen in ["listen", "admin_listen", "tokens_listen"] {
                if config[listen].as_str().is_some_and(|address| !address.starts_with("unix:")) {
                    config[listen] = json!("127.0.0.1:0");
                }
            }
            std::fs::write(&container.path, config.to_string()).expect("written");
            let mut process = Command::new(executable());
            process.args(&container.args).envs(container.variables.iter().cloned());
            // Nothing of whoever runs this is read or written.
            process.env("HOME", "/dev/null").env_remove("XDG_STATE_HOME").env_remove("STATE_DIRECTORY");
            let mut process = Process::spawn("envoy-cimd", process.into());
            process.line(|line| ready_address(line, "admin")).await;
            if command == "choreographer" {
                let address = process.line(|line| ready_address(line, "choreographer")).await;
                choreographer = Some((address, process.line(|line| ready_address(line, "tokens")).await));
            } else {
                process.line(|line| ready_address(line, "ext_proc")).await;
                for (part, is_there) in [("choreographer", !here), ("tokens", !config["tokens"].is_null())] {
                    if is_there {
                        process.line(|line| reached(line, part)).await;
                    }
                }
            }
            assert!(!process.output().contains("has no effect"), "{name}: {}", process.output());
            running.push(process);
        }
        containers.into_iter().map(|container| container.args[0].clone()).collect()
    }

    /// What runs in a pod, with all that it mounts in a folder of its own.
    fn container(&self, pod: &Value) -> Container {
        let container = containers(pod).find(|container| container["name"] == "envoy-cimd").expect("our container");
        let args: Vec<String> = list(&container["args"]).iter().map(|arg| text(arg).to_owned()).collect();
        let root = self.dir.path().join(&args[0]);
        let inside = |path: &str| root.join(path.trim_start_matches('/'));
        let mounts: Vec<(&str, &Value)> = list(&container["volumeMounts"])
            .iter()
            .map(|mount| {
                let volume = list(&pod["volumes"]).iter().find(|volume| volume["name"] == mount["name"]);
                (text(&mount["mountPath"]), volume.expect("a volume"))
            })
            .collect();
        let config_map = |name: &Value| {
            let is_it = |object: &&Value| object["kind"] == "ConfigMap" && object["metadata"]["name"] == *name;
            self.documents.iter().find(is_it)
        };
        let (_, volume) = mounts.iter().find(|(path, _)| *path == "/etc/envoy-cimd/config").expect("a config file");
        let object = config_map(&volume["configMap"]["name"]).expect("a ConfigMap");
        let settings = text(&object["data"]["envoy-cimd.yaml"]);
        let written: Value = serde_saphyr::from_str(settings).expect("YAML");

        let folders = ["/etc/envoy-cimd/", "/run/envoy-cimd", "/var/lib/envoy-cimd"];
        let moved = |text: &str| {
            let moved = |text: String, folder| text.replace(folder, inside(folder).to_str().expect("text"));
            // A folder's slash at its end is lost on the way.
            folders.map(|folder| folder.trim_end_matches('/')).into_iter().fold(text.to_owned(), moved)
        };
        for (path, volume) in mounts {
            let folder = inside(path);
            std::fs::create_dir_all(&folder).expect("a folder");
            let put = |name: &str, text: &str| {
                std::fs::write(folder.join(name), text).expect("written");
                set_mode(&folder.join(name), 0o600);
            };
            let of = [&volume["secret"], &volume["configMap"]].into_iter().find(|of| !of.is_null());
            let items = of.map_or(&[][..], |of| list(&of["items"]));
            for name in items.iter().map(|item| text(&item["path"])) {
                match name {
                    "ca.crt" => put(name, &std::fs::read_to_string(&self.authority.ca).expect("text")),
                    "state.keys" | "encryption.keys" => put(name, &generate_key_line().expect("a key")),
                    _ => panic!("nobody knows {name}"),
                }
            }
            if path == "/etc/envoy-cimd/tls" {
                self.certificate(&args[0], &written, &put);
            }
            for client in list(&written["clients"]) {
                let secret =
                    client["client_secret_file"].as_str().and_then(|secret| secret.strip_prefix(&format!("{path}/")));
                secret.into_iter().for_each(|name| put(name, "hunter2"));
            }
        }
        let path = inside("/etc/envoy-cimd/config/envoy-cimd.yaml");
        let settings = moved(settings);
        std::fs::write(&path, &settings).expect("written");
        let variables = list(&container["env"]).iter().filter_map(|variable| {
            let value = match variable["value"].as_str() {
                Some(value) => value.to_owned(),
                None if variable["name"] == "ENVOY_CIMD_STORE" => "redis://127.0.0.1:1".to_owned(),
                None => return None,
            };
            Some((text(&variable["name"]).to_owned(), value))
        });
        Container {
            args: args.iter().map(|arg| moved(arg)).collect(),
            variables: variables.collect(),
            config: serde_saphyr::from_str(&settings).expect("YAML"),
            path,
        }
    }

    /// A certificate as the values say that it is: `serve` has a name that the choreographer lets in, and the
    /// choreographer the one that `serve` looks for.
    fn certificate(&self, command: &str, config: &Value, put: &dyn Fn(&str, &str)) {
        let other = if command == "serve" { "allow_peer" } else { "choreographer" };
        let settings = self.documents.iter().filter(|object| object["kind"] == "ConfigMap").filter_map(|object| {
            let settings: Value = serde_saphyr::from_str(object["data"]["envoy-cimd.yaml"].as_str()?).expect("YAML");
            (settings != *config && !settings[other].is_null()).then_some(settings)
        });
        let mut name = settings.map(|settings| match settings["choreographer_peer"].as_str() {
            Some(peer) if command != "serve" => peer.to_owned(),
            _ if command == "serve" => text(&settings["allow_peer"][0]).to_owned(),
            _ => "127.0.0.1".to_owned(),
        });
        let name = name.next().unwrap_or_else(|| "nobody.example".to_owned());
        let made = self.authority.issue(command, &[&name]);
        for (file, path) in [("tls.crt", made.cert), ("tls.key", made.key), ("ca.crt", made.ca)] {
            put(file, &std::fs::read_to_string(path).expect("text"));
        }
    }
}

impl Container {
    /// What `check` says of the file as it is, listeners and all.
    fn check(&self, name: &str) {
        let variables: Vec<(&str, &str)> =
            self.variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let (code, stdout, stderr) = run(&["check", "--config", self.path.to_str().expect("text")], &variables);
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{name}: {stdout}");
        let knows_people = ["user_namespace", "single_user"].iter().any(|key| !self.config[key].is_null());
        let mut expected = String::new();
        if !knows_people {
            write!(expected, "nobody can connect").expect("text");
        }
        let warnings = stdout.lines().filter_map(|line| line.trim().strip_prefix("warning: "));
        let warnings: Vec<&str> = warnings.filter(|warning| knows_people || !warning.starts_with(&expected)).collect();
        assert_eq!(warnings, [] as [&str; 0], "{name}: {stdout}");
        let roles = self.config["roles"].as_array().map_or(3, Vec::len);
        let served = stdout.lines().find_map(|line| line.strip_prefix("serves ")).expect("what is served");
        assert_eq!(served.split(", ").count(), roles, "{name}: {stdout}");
    }
}

fn reached(line: &str, part: &str) -> Option<()> {
    let line: Value = serde_json::from_str(line).ok()?;
    (line["message"] == "can be reached" && line["part"] == part).then_some(())
}
