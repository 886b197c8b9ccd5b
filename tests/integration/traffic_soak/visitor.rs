//! Somebody who calls tools, connects and disconnects, and knows what they may expect.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use http::Version;
use http_body_util::BodyExt;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::{
    sync::{Mutex, watch},
    time::{sleep, timeout},
};

use super::{LAST, PATIENCE, ROUTES, Route, SETTLES, Shared, TAKES};
use crate::{
    flow::{person, press_shown},
    gateway::{Ask, Payload, THEIRS},
    mcp_upstream::Upload,
    soak::Chance,
    stack::{Answered, Call, Client},
    traffic_ledger::{NUMBER, Told, Whose},
    world::{CALLBACK, DISCONNECT, START},
};

/// A person's connection to Envoy, on which all their calls go.
pub struct Line {
    pub client: Client,
    pub sender: Mutex<Option<SendRequest<Upload>>>,
}

impl Line {
    async fn send(&self, ask: &Ask) -> Result<Answered, String> {
        let text = |error: hyper::Error| format!("{error:?}");
        let mut sender = self.sender().await?;
        sender.ready().await.map_err(text)?;
        let answer = sender.send_request(ask.request(Version::HTTP_2)).await.map_err(text)?;
        let (head, body) = answer.into_parts();
        let body = body.collect().await.map_err(text)?.to_bytes();
        Ok(Answered { status: head.status.as_u16(), headers: head.headers, body })
    }

    async fn sender(&self) -> Result<SendRequest<Upload>, String> {
        let mut sender = self.sender.lock().await;
        if let Some(sender) = sender.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let io = TokioIo::new(self.client.connect(Version::HTTP_2, ROUTES[0].host).await?);
        let (new, connection) =
            handshake(TokioExecutor::new(), io).await.map_err(|error: hyper::Error| format!("{error:?}"))?;
        tokio::spawn(connection);
        Ok(sender.insert(new).clone())
    }
}

/// How somebody stands at a route, as far as they can know.
#[derive(Clone, Debug, PartialEq)]
pub enum Stands {
    /// Something broke that may still change it, or may have.
    Unknown,
    Not,
    /// By the flow with this code.
    With(String),
    /// Their grant was ended at the authorization server.
    Ended,
}

pub struct Visitor {
    pub shared: Arc<Shared>,
    pub whose: Whose,
    pub line: Arc<Line>,
    pub chance: Chance,
    pub stands: Stands,
    /// Until then, what broke may still change how they stand.
    pub unsure_until: Option<Instant>,
    /// Whether the last answer said where to connect.
    pub is_told: bool,
    /// What became of them lately, for who looks into a failure.
    pub history: Vec<(Instant, String)>,
    /// Whether the upstream refused a token of this connection: the next one that it refuses is not renewed at once.
    pub was_revoked: bool,
}

impl Visitor {
    pub async fn stay(mut self, goes_on: watch::Receiver<bool>) {
        while *goes_on.borrow() {
            let pause = self.chance.below(2500);
            sleep(Duration::from_millis(pause)).await;
            if self.is_told && self.chance.below(2) == 0 {
                self.connect().await;
                continue;
            }
            match self.chance.below(40) {
                0..2 => self.disconnect().await,
                2..4 => self.connect().await,
                4..6 => self.revoked(),
                6 => self.ended(),
                7..10 => {
                    let takes = self.chance.below(2000).to_string();
                    self.calls(self.post().header(TAKES, takes)).await;
                }
                10..13 => self.streams("POST").await,
                13..15 => self.streams("GET").await,
                15 => self.leaves().await,
                _ => {
                    self.calls(self.post()).await;
                }
            }
        }
        while self.calls(self.post()).await != Told::Done {
            if self.is_told {
                self.connect().await;
            }
            let pause = 200 + self.chance.below(800);
            sleep(Duration::from_millis(pause)).await;
        }
    }

    fn route(&self) -> &'static Route {
        &ROUTES[self.whose.route]
    }

    fn subject(&self) -> String {
        format!("person {}", self.whose.person)
    }

    fn is_unsure(&self) -> bool {
        self.unsure_until.is_some_and(|until| Instant::now() < until)
    }

    fn is_unsure_now(&mut self) {
        self.unsure_until = Some(Instant::now() + SETTLES);
        self.stands(Stands::Unknown);
    }

    /// They stand so, unless something may still change it.
    fn stands(&mut self, stands: Stands) {
        self.history.push((Instant::now(), format!("{stands:?}")));
        self.stands = if self.is_unsure() { Stands::Unknown } else { stands };
    }

    /// # Panics
    /// With what became of them lately, where something is not as it should be.
    fn holds(&self, is_right: bool, what: &str) {
        let lately = self
            .history
            .iter()
            .rev()
            .take(12)
            .map(|(at, what)| format!("{:.1} s ago {what}", at.elapsed().as_secs_f32()));
        assert!(is_right, "{:?}: {what}; {:?}", self.whose, lately.collect::<Vec<_>>());
    }

    /// A call of a tool, with all that a caller should not send; its number is still to be put in.
    fn post(&self) -> Ask {
        Ask::new("POST").header("content-type", "application/json")
    }

    /// Makes a call, and holds what it came to against how this person stands.
    async fn calls(&mut self, ask: Ask) -> Told {
        let number = self.shared.ledger.sends(self.whose);
        let envoy = self.shared.envoy.load(Ordering::SeqCst);
        let answer = timeout(PATIENCE, self.line.send(&self.numbered(ask, number))).await;
        let answer = answer.unwrap_or_else(|_| panic!("{:?}: call {number} hangs", self.whose));
        let told = match &answer {
            Ok(answer) => told(answer, number, self.route()),
            Err(error) => {
                let was_away = envoy % 2 == 1 || self.shared.envoy.load(Ordering::SeqCst) != envoy;
                self.holds(was_away, &format!("call {number} broke though Envoy is there: {error}"));
                Told::Nothing
            }
        };
        let ran_with = self.shared.ledger.told(number, told);
        match (told, ran_with) {
            (Told::Done, Some(code)) => {
                let is_right = self.stands == Stands::Unknown || self.stands == Stands::With(code.clone());
                self.holds(is_right, &format!("stands {:?}, and call {number} had a token of {code}", self.stands));
                self.stands(Stands::With(code));
                self.is_told = false;
                self.shared.done.fetch_add(1, Ordering::Relaxed);
            }
            (Told::NotConnected, _) => {
                // The first route's authorization server takes an old refresh token where the new one was lost.
                let is_lost = self.whose.route == 0 && matches!(self.stands, Stands::With(_));
                self.holds(!is_lost, &format!("lost their token: {answer:?}"));
                self.stands(Stands::Not);
                self.is_told = true;
            }
            (Told::Failed | Told::Nothing, _) => {
                let pause = 100 + self.chance.below(400);
                sleep(Duration::from_millis(pause)).await;
            }
            // The ledger has it.
            (Told::Done, None) => {}
        }
        told
    }

    fn numbered(&self, ask: Ask, number: usize) -> Ask {
        let body = json!({"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": {"name": "tool"}});
        let ask = match ask.method {
            "POST" => ask.payload(Payload::Whole(body.to_string().into())),
            _ => ask,
        };
        ask.at(self.route().host, self.route().mcp)
            .by(Some(&self.subject()))
            .header(NUMBER, number.to_string())
            .header("authorization", format!("Bearer {THEIRS}"))
            .header("cookie", format!("session={THEIRS}"))
            .header("proxy-authorization", format!("Basic {THEIRS}"))
    }

    /// A stream that goes on for longer than some part lives.
    async fn streams(&mut self, method: &'static str) {
        let between = self.chance.below(700).to_string();
        let told = self.calls(Ask::new(method).header("accept", "text/event-stream").header(TAKES, between)).await;
        self.shared.streams.fetch_add(usize::from(told == Told::Done), Ordering::Relaxed);
    }

    /// Makes a call, and goes away.
    async fn leaves(&mut self) {
        let number = self.shared.ledger.sends(self.whose);
        let ask = self.numbered(self.post().header(TAKES, "100"), number);
        let after = Duration::from_millis(self.chance.below(100));
        // What was read by then is no matter.
        let _ = timeout(after, self.line.send(&ask)).await;
        self.shared.ledger.told(number, Told::Nothing);
    }

    /// Their token is taken no more, and nobody told us.
    fn revoked(&mut self) {
        if !self.was_revoked && matches!(self.stands, Stands::With(_)) {
            self.was_revoked = true;
            self.shared.ledger.revokes(self.whose);
        }
    }

    /// Their grant is over, and nobody told us.
    fn ended(&mut self) {
        // A token that was refused a moment ago is not refreshed again, and so the end of its grant not noticed.
        if let Stands::With(code) = &self.stands
            && !self.was_revoked
        {
            self.shared.ledger.ends(code);
            self.shared.servers.end_grant(code);
            self.shared.ended.fetch_add(1, Ordering::Relaxed);
            self.stands(Stands::Ended);
        }
    }

    /// The answer to a person at a page; none where there was none in time.
    async fn visit(&self, call: Call) -> Option<Answered> {
        self.shared.client.send(Version::HTTP_2, person(call, "i", &self.subject())).await.ok()
    }

    async fn disconnect(&mut self) {
        let shared = Arc::clone(&self.shared);
        let _place = shared.places.acquire().await.expect("never closed");
        let path = format!("{}{DISCONNECT}", self.route().path);
        let call = Call::get(self.route().host, &path).method("POST").header("sec-fetch-site", "same-origin");
        match self.visit(call).await {
            Some(answer) if answer.status == 303 => {
                self.stands(Stands::Not);
                self.is_told = true;
                shared.disconnected.fetch_add(1, Ordering::Relaxed);
            }
            answer => {
                is_down(answer.as_ref());
                self.is_unsure_now();
            }
        }
    }

    async fn connect(&mut self) {
        let (shared, route) = (Arc::clone(&self.shared), self.route());
        let _place = shared.places.acquire().await.expect("never closed");
        let issuer = format!("{}/{}", shared.servers.issuer, route.name);
        let mut press = press_shown(route.host, "", &issuer);
        press.path = format!("{}{}", route.path, press.path);
        let begun = match self.visit(press).await {
            Some(begun) if begun.status == 303 => begun,
            // Nothing that they had is changed by it.
            answer => return is_down(answer.as_ref()),
        };
        let [location] = begun.all("location")[..] else { panic!("{begun:?}") };
        let code = shared.servers.consent(location);
        shared.ledger.connects(self.whose, &code);
        let location = url::Url::parse(location).expect("a URL");
        let state = location.query_pairs().find(|(name, _)| name == "state").expect("a state").1.into_owned();
        let [cookie] = begun.all("set-cookie")[..] else { panic!("{begun:?}") };
        let cookie = cookie.split(';').next().expect("a pair");
        shared.ledger.hides(&state);
        shared.ledger.hides(cookie.split_once('=').expect("a pair").1);
        let path = format!("{}{CALLBACK}?code={code}&state={state}&iss={issuer}", route.path);
        let callback = Call::get(route.host, &path).header("cookie", cookie);
        // A browser that reloads: 503 says that nothing was consumed, or is Envoy's.
        for _ in 0..20 {
            match self.visit(callback.clone()).await {
                Some(answer) if answer.status == 303 => {
                    self.stands(Stands::With(code));
                    (self.was_revoked, self.is_told) = (false, false);
                    shared.connected.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                Some(answer) if answer.status == 503 => {
                    self.is_unsure_now();
                    sleep(Duration::from_millis(200)).await;
                }
                // An earlier try used it up.
                Some(answer) if answer.status == 409 => break,
                answer => {
                    is_down(answer.as_ref());
                    break;
                }
            }
        }
        self.is_unsure_now();
    }
}

/// Nothing but a part that is away keeps a person from their page.
fn is_down(answer: Option<&Answered>) {
    assert!(answer.is_none_or(|answer| (502..=504).contains(&answer.status)), "{answer:?}");
}

/// What an answer says to the caller.
fn told(answer: &Answered, number: usize, route: &Route) -> Told {
    let text = String::from_utf8_lossy(&answer.body);
    assert!(!text.contains("SECRET") && answer.all("www-authenticate").is_empty(), "{answer:?}");
    let link = format!("{}{START}", route.from);
    match answer.status {
        200 if text.ends_with(&format!("{LAST}{number}\n\n")) => Told::Done,
        200 => {
            // Who takes nothing but a stream of events is answered with one.
            let body = text.strip_prefix("event: message\ndata: ").unwrap_or(&text);
            let body: Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("{answer:?}"));
            assert_eq!(body["id"], number, "{answer:?}");
            if body["result"]["done"] == number {
                return Told::Done;
            }
            assert!(body["result"]["isError"] == true && text.contains(&link), "{answer:?}");
            Told::NotConnected
        }
        // A GET has no message that could be answered.
        405 if text.contains(&link) => Told::NotConnected,
        502..=504 => Told::Failed,
        _ => panic!("call {number}: {answer:?}"),
    }
}
