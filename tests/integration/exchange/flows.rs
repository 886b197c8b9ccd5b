//! Flows from Begin to Complete: each ends once, and is its owner's.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use envoy_cimd::{
    contract::proto::{
        self, BeginAuthorizationRequest, CompleteAuthorizationRequest,
        authorization_choreographer_client::AuthorizationChoreographerClient, begin_authorization_response,
        complete_authorization_request::Answer, complete_authorization_response, complete_refusal::Reason,
    },
    model::{
        client::RedirectUri,
        flow::{BrowserHash, FlowId},
        user::User,
    },
    store::keys::{Context, FlowKey},
};
use serde_json::{Value, json};
use tonic::transport::Endpoint;

use super::{CALLBACK, CLIENT, Party, connect_through, with_upstream};
use crate::{
    authorization_server::{HOST, Lie, Servers, Token},
    stack::{Certificates, Choreographer},
    tokens::Kept,
    world::{Wish, World, executable},
};

/// The honest flow, each way that it can end, and what is asked for.
#[tokio::test]
async fn flows_begin_and_end() {
    let honest = Lie::none;
    let no_iss =
        Lie { metadata: |d| d["authorization_response_iss_parameter_supported"] = json!(false), ..honest("no-iss") };
    let bare = Lie {
        metadata: |d| drop(d.as_object_mut().expect("an object").remove("scopes_supported")),
        token: Token::Json(|d| drop(d.as_object_mut().expect("an object").remove("expires_in"))),
        ..honest("bare")
    };
    let mut party = Party::start(vec![honest("good"), honest("fresh"), no_iss, bare], &[]).await;
    let begun = party.begun("good").await;
    let url = url::Url::parse(&begun.authorization_url).expect("a URL");
    let sent = |name: &str| url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned());
    assert_eq!(sent("client_id").as_deref(), Some(CLIENT));
    assert_eq!(sent("redirect_uri").as_deref(), Some(CALLBACK));
    assert_eq!(sent("resource"), Some(party.servers.upstream_of("good")));
    assert_eq!(sent("scope").as_deref(), Some("read write offline_access"), "the challenge's, and what refreshes");
    assert_eq!(sent("prompt").as_deref(), Some("consent"));
    assert_eq!(sent("state"), None, "the caller's to sign");
    assert_eq!(begun.flow_id.len(), 16);

    // Wrong in each part of the context: refused, and not consumed.
    let right = party.answer("good", &begun);
    let other_user = proto::User {
        kind: Some(proto::user::Kind::Subject(proto::Subject { issuer: "i".into(), subject: "s".into() })),
    };
    for wrong in [
        CompleteAuthorizationRequest { browser_hash: vec![8; 32], ..right.clone() },
        CompleteAuthorizationRequest { redirect_uri: format!("{CALLBACK}x"), ..right.clone() },
        CompleteAuthorizationRequest { user: Some(other_user), ..right.clone() },
    ] {
        assert_eq!(party.complete(wrong).await, Err((Reason::WrongContext, String::new())));
    }
    let unknown = CompleteAuthorizationRequest { flow_id: vec![0; 16], ..right.clone() };
    assert_eq!(party.complete(unknown).await, Err((Reason::UnknownFlow, String::new())));
    assert_eq!(party.complete(right.clone()).await, Ok("/after".to_owned()));
    assert_eq!(party.complete(right).await, Err((Reason::AlreadyUsed, "/after".to_owned())));

    // `iss`: another, in another spelling, absent though announced; also on an error. Consumed, never exchanged.
    let exchanges = party.servers.exchanges().len();
    let issuer = format!("{}/good", party.servers.issuer);
    for (iss, error) in [
        (Some("https://evil.example".to_owned()), false),
        (Some(format!("{issuer}/")), false),
        (Some(issuer.replace("https://", "HTTPS://")), false),
        (None, false),
        (None, true),
    ] {
        let cause = match iss {
            Some(_) => format!("`iss` is not {issuer}"),
            None => "`iss` is missing, and has to be there".to_owned(),
        };
        let begun = party.begun("good").await;
        let mut answer = party.answer("good", &begun);
        answer.iss = iss.clone();
        if error {
            answer.answer = Some(Answer::Error(proto::AuthorizationError {
                error: "SECRET".into(),
                error_description: "SECRET".into(),
            }));
        }
        assert_eq!(party.complete(answer.clone()).await, Err((Reason::IssuerMismatch, cause)), "{iss:?}");
        assert_eq!(party.complete(answer).await, Err((Reason::AlreadyUsed, "/after".to_owned())), "{iss:?}");
    }
    // A refusal of the authorization server's.
    let begun = party.begun("good").await;
    let mut denied = party.answer("good", &begun);
    denied.answer =
        Some(Answer::Error(proto::AuthorizationError { error: "SECRET".into(), error_description: "SECRET".into() }));
    assert_eq!(party.complete(denied).await, Err((Reason::AuthorizationError, "other".to_owned())));
    assert_eq!(party.servers.exchanges().len(), exchanges);
    // Neither announced nor sent: goes on.
    let begun = party.begun("no-iss").await;
    let mut answer = party.answer("no-iss", &begun);
    answer.iss = None;
    assert_eq!(party.complete(answer).await, Ok("/after".to_owned()));
    // Nobody lists `offline_access`, so nobody is asked for it.
    let begun = party.begun("bare").await;
    assert!(!begun.authorization_url.contains("offline_access") && !begun.authorization_url.contains("prompt"));
    let answer = party.answer("bare", &begun);
    assert_eq!(party.complete(answer).await, Ok("/after".to_owned()));
    // One look-up an upstream, however many flows, also of those that begin at once.
    let begins = (0..20).map(|_| party.begin("fresh"));
    futures_util::future::join_all(begins).await;
    let fetches = party.servers.fetches();
    for server in ["server good", "server fresh"] {
        assert_eq!(fetches.iter().filter(|fetch| *fetch == server).count(), 1, "{fetches:?}");
    }

    let audit: Vec<Value> = party
        .process
        .process
        .output()
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter(|line: &Value| line["target"] == "audit")
        .collect();
    let events = |event: &str, outcome: &str| {
        audit.iter().filter(|line| line["event"] == event && line["outcome"] == outcome).count()
    };
    assert_eq!(
        (events("begun", "ok"), events("completed", "ok"), events("completed", "issuer_mismatch")),
        (29, 3, 5),
        "{audit:#?}"
    );
    assert_eq!((events("refused", "wrong_context"), events("refused", "unknown_flow")), (3, 1));
    let stored = party.stored(&["good", "no-iss", "bare", "other"]).await;
    assert_eq!(
        stored
            .iter()
            .filter(|token| token.as_ref().is_some_and(|token| token.starts_with("SECRET-access-of-")))
            .count(),
        3
    );
    assert_eq!(stored.last(), Some(&None));
}

/// Two choreographers on one Redis: each of 50 flows is completed by four callbacks at once, two on either, and each
/// code is redeemed once.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_gives_each_flow_to_one_of_two_choreographers() {
    let (kept, _redis) = Kept::in_redis().await;
    let flags = kept.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let party = Party::start(vec![Lie::none("good")], &flags).await;
    let other = {
        let certificates = ["--extra-ca", &party.ca, "--allow-host", HOST];
        Choreographer::start(&executable(), &[&flags[..], &certificates[..]].concat()).await
    };
    let endpoint = Endpoint::from_shared(format!("http://{}", other.address)).expect("an address");
    let other_client = AuthorizationChoreographerClient::new(endpoint.connect().await.expect("a connection"));
    let mut answers = Vec::new();
    for _ in 0..50 {
        let user = proto::Subject { issuer: "i".into(), subject: format!("user {}", answers.len() % 5) };
        let user = Some(proto::User { kind: Some(proto::user::Kind::Subject(user)) });
        let request = BeginAuthorizationRequest { user: user.clone(), ..party.request("good") };
        let begin_authorization_response::Outcome::Begun(begun) = party.begin_with(request).await else {
            panic!("it began")
        };
        answers.push(CompleteAuthorizationRequest { user, ..party.answer("good", &begun) });
    }
    let calls = answers.iter().flat_map(|answer| {
        [&party.client, &other_client, &party.client, &other_client].map(|client| {
            let (mut client, answer) = (client.clone(), answer.clone());
            tokio::spawn(async move {
                let outcome = client.complete_authorization(answer).await.expect("an answer").into_inner().outcome;
                matches!(outcome, Some(complete_authorization_response::Outcome::Completed(_)))
            })
        })
    });
    let calls: Vec<_> = calls.collect();
    let mut completed = 0;
    for call in calls {
        completed += usize::from(call.await.expect("it ends"));
    }
    let mut exchanges = party.servers.exchanges();
    exchanges.sort();
    exchanges.dedup();
    assert_eq!((completed, party.servers.exchanges().len(), exchanges.len()), (50, 50, 50));
}

/// What a flow asks of Redis: one script each to keep the flow, to take it, and to keep the token; and before the first and
/// the last, one to read what the token before lacked.
#[tokio::test]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_is_asked_five_times_a_flow() {
    let (kept, redis) = Kept::in_redis().await;
    let flags = kept.flags();
    let party = Party::start(vec![Lie::none("good")], &flags.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let flow = async || {
        let begun = party.begun("good").await;
        party.complete(party.answer("good", &begun)).await.expect("completed");
    };
    // The first flow connects, and sends the scripts.
    flow().await;
    let before = redis.command_calls().await;
    flow().await;
    let mut calls = redis.command_calls().await;
    for (command, before) in before {
        calls.entry(command).and_modify(|calls| *calls -= before);
    }
    calls.retain(|command, calls| *calls > 0 && command != "info");
    println!("{calls:?}");
    assert_eq!(calls.get("evalsha"), Some(&5), "{calls:?}");
}

/// Somebody who can write to the store makes another's flows their own: what is sealed says whose they are.
async fn rewritten_flows(kept: Kept, rewrite: impl AsyncFnOnce(&Kept, [FlowKey; 2], Context)) {
    let flags = kept.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let mut party = Party::start(vec![Lie::none("good")], &flags).await;
    let (pending, used) = (party.begun("good").await, party.begun("good").await);
    let answers = [&pending, &used].map(|begun| party.answer("good", begun));
    assert_eq!(party.complete(answers[1].clone()).await, Ok("/after".to_owned()));
    assert_eq!(party.process.process.stop().await, Some(0));

    let eve = User::Subject { issuer: "i".to_owned(), subject: "eve".to_owned() };
    let context = Context::of(&RedirectUri::new(CALLBACK), &eve, &BrowserHash([9; 32]));
    let ids = [&pending, &used].map(|begun| begun.flow_id.as_slice().try_into().expect("16 bytes"));
    rewrite(&kept, ids.map(|id| FlowKey::of(&FlowId(id))), context).await;
    let again = [&["--extra-ca", &party.ca, "--allow-host", HOST], &flags[..]].concat();
    party.process = Choreographer::start(&executable(), &again).await;
    let endpoint = Endpoint::from_shared(format!("http://{}", party.process.address)).expect("an address");
    party.client = AuthorizationChoreographerClient::new(endpoint.connect().await.expect("a connection"));
    for answer in answers {
        let eves = CompleteAuthorizationRequest { user: Some(eve.clone().into()), browser_hash: vec![9; 32], ..answer };
        assert_eq!(party.complete(eves).await, Err((Reason::WrongContext, String::new())));
    }
    assert_eq!(party.servers.exchanges().len(), 1, "the one from before");
    assert_eq!(party.process.process.output().matches("isolation_violation").count(), 2);
}

#[tokio::test]
async fn a_flow_that_was_rewritten_is_nobodys() {
    let kept = Kept::in_file();
    rewritten_flows(kept, async |kept, flows, context| {
        type Stored<'a> = (&'a [u8; 32], &'a [u8; 32], u64, u64, Option<&'a [u8]>, &'a [u8]);
        const FLOWS: redb::TableDefinition<&[u8; 32], Stored> = redb::TableDefinition::new("flows-v1");
        let file = redb::Database::open(kept.url.to_string().trim_start_matches("file:")).expect("a store");
        let writing = file.begin_write().expect("a transaction");
        for flow in flows {
            let mut table = writing.open_table(FLOWS).expect("flows");
            let stored = table.remove(flow.as_bytes()).expect("a store").expect("a flow");
            let (_, user, expires_at, sequence, sealed, tombstone) = stored.value();
            let (user, sealed, tombstone) = (*user, sealed.map(<[u8]>::to_vec), tombstone.to_vec());
            drop(stored);
            let changed = (context.as_bytes(), &user, expires_at, sequence, sealed.as_deref(), &*tombstone);
            table.insert(flow.as_bytes(), changed).expect("changed");
        }
        writing.commit().expect("changed");
    })
    .await;
}

#[tokio::test]
#[ignore = "needs redis-server: make test-redis"]
async fn redis_a_flow_that_was_rewritten_is_nobodys() {
    let (kept, redis) = Kept::in_redis().await;
    rewritten_flows(kept, async |_, flows, context| {
        for flow in flows {
            let key = format!("envoy_cimd:v1:flow:{}", BASE64_URL_SAFE_NO_PAD.encode(flow.as_bytes()));
            redis.set_field(&key, "context", context.as_bytes()).await;
        }
    })
    .await;
}

/// The whole way, in one process: Envoy, the filter, the embedded choreographer, the authorization server.
#[tokio::test]
async fn the_whole_flow_in_one_process() {
    let dir = tempfile::tempdir().expect("a folder");
    let certificates = Certificates::make(dir.path(), &[HOST]);
    let servers = Servers::start(&certificates, vec![Lie::none("good")]).await;
    let (ca, state) = (certificates.ca.to_str().expect("text"), dir.path().join("state"));
    let flags = ["--single-user", "--extra-ca", ca, "--allow-host", HOST, "--state-dir", state.to_str().expect("text")];
    let upstream = servers.upstream_of("good");
    let edit = |config: &mut Value| with_upstream(config, &upstream);
    let mut world = World::start(Wish { cimd: &flags, edit: &edit, ..Wish::default() }).await;
    assert!(!state.exists(), "documents are served without a store");
    let [code, state, ..] = connect_through(&world, &servers, "").await;
    assert_eq!(servers.exchanges(), [code]);
    assert_eq!(world.cimd.process.stop().await, Some(0));
    let log = world.cimd.process.output();
    assert!(!log.contains("SECRET") && !log.contains(&state), "{log}");
}
