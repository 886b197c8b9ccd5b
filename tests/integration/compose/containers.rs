//! What Docker is asked of the containers and their volumes.

use tokio::process::Command;

use super::until;

pub async fn read_volume(user: &str, file: &str) -> String {
    set_up(user, &format!("process.stdout.write(fs.readFileSync('/volumes/{file}'))"), &[]).await
}

/// Runs a line of JavaScript where all volumes are, as the user that owns the files.
pub async fn set_up(user: &str, script: &str, args: &[&str]) -> String {
    let compose = std::env::var("COMPOSE").expect("`make compose-test` sets COMPOSE");
    let mut command = compose.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let run = ["run", "--rm", "-T", "--no-deps", "--user", user, "setup", "node", "-e", script, "--"];
    // After `--`, since a key may begin with a hyphen.
    command.extend(run.iter().chain(args).map(|&arg| arg.to_owned()));
    output(&command).await
}

/// Waits until a container says that it is healthy, which envoy-cimd's own `probe` finds out.
pub async fn until_healthy(service: &str) {
    let id = container(service).await;
    until(&format!("{service} is healthy"), async || {
        docker(&["inspect", "--format", "{{.State.Health.Status}}", &id]).await.trim() == "healthy"
    })
    .await;
}

pub async fn container(service: &str) -> String {
    let labels = [("project", project()), ("service", service.to_owned())]
        .map(|(name, value)| format!("label=com.docker.compose.{name}={value}"));
    let [project, service] = &labels;
    // Not those that a single command ran in.
    let once = "label=com.docker.compose.oneoff=False";
    let ids = docker(&["ps", "--all", "--quiet", "--filter", project, "--filter", service, "--filter", once]).await;
    ids.trim().to_owned()
}

pub fn project() -> String {
    std::env::var("COMPOSE_PROJECT_NAME").expect("`make compose-test` sets COMPOSE_PROJECT_NAME")
}

/// What a container printed, before it was restarted too.
pub async fn logs(id: &str) -> String {
    let output = Command::new("docker").args(["logs", id]).output().await.expect("docker runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

pub async fn docker(args: &[&str]) -> String {
    let command: Vec<String> = ["docker"].iter().chain(args).map(|&arg| arg.to_owned()).collect();
    output(&command).await
}

/// The standard output of a command, which must succeed.
async fn output(command: &[String]) -> String {
    let [program, args @ ..] = command else { panic!("no program") };
    let output = Command::new(program).args(args).output().await.expect("it runs");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}
