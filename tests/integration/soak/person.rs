//! Somebody who connects, refreshes and disconnects, and knows what they are owed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use envoy_cimd::contract::proto::{
    self, BeginAuthorizationRequest, CompleteAuthorizationRequest, GetUpstreamTokenRequest,
    begin_authorization_response, begin_refusal, complete_authorization_request::Answer,
    complete_authorization_response, complete_refusal::Reason,
};
use tokio::{sync::watch, time::sleep};
use tonic::Code;

use super::{Account, Chance, ISSUER, NAME, Shared};
use crate::{
    exchange::{CALLBACK, CLIENT},
    tokens::person,
};

/// Somebody who connects, and whose tokens are used, one after the other.
pub struct Person {
    pub subject: String,
    pub number: usize,
    /// How many subjects they have been.
    pub lives: usize,
    pub chance: Chance,
    pub shared: Arc<Shared>,
}

/// What came of a Complete.
enum Completed {
    Yes,
    Refused(Reason),
    Broken,
}

/// What came of a request for a token.
enum Given {
    Token,
    NotFound,
    /// It may come later.
    Broken,
}

impl Person {
    /// Until there is nothing more to be told.
    pub async fn live(mut self, mut told: watch::Receiver<Option<usize>>) {
        loop {
            let news = told.has_changed().expect("the test goes on").then(|| *told.borrow_and_update());
            match news {
                Some(None) => return,
                Some(Some(_)) => {
                    while !matches!(self.token().await, Given::Token) {
                        if !self.is_connected() {
                            self.connect().await;
                        }
                        self.pause().await;
                    }
                    self.shared.counts.settled.fetch_add(1, Ordering::Relaxed);
                }
                None => {}
            }
            if self.is_connected() && self.chance.below(8) == 0 {
                // As somebody new, who has no earlier token that a lost one could hide behind.
                self.lives += 1;
                self.subject = format!("user {}.{}", self.number, self.lives);
            }
            if !self.is_connected() || self.chance.below(3) == 0 {
                self.connect().await;
            } else {
                self.token().await;
            }
            self.pause().await;
        }
    }

    async fn pause(&mut self) {
        sleep(Duration::from_millis(self.chance.below(40))).await;
    }

    fn account<T>(&self, change: impl FnOnce(&mut Account) -> T) -> T {
        change(self.shared.ledger.lock().expect("ledger").entry(self.subject.clone()).or_default())
    }

    fn is_connected(&self) -> bool {
        self.account(|account| account.since.is_some())
    }

    fn step(&self, count: &AtomicUsize) {
        count.fetch_add(1, Ordering::Relaxed);
        self.shared.counts.steps.fetch_add(1, Ordering::Relaxed);
    }

    /// A flow, and where it breaks off, what is left of it.
    async fn connect(&mut self) {
        let Some(begun) = self.begin().await else { return };
        let code = self.shared.servers.consent(&begun.authorization_url);
        self.account(|account| account.codes.push(code.clone()));
        let answer = CompleteAuthorizationRequest {
            flow_id: begun.flow_id,
            redirect_uri: CALLBACK.to_owned(),
            user: Some(person(ISSUER, &self.subject)),
            browser_hash: vec![7; 32],
            answer: Some(Answer::Code(code.clone())),
            iss: Some(format!("{}/{NAME}", self.shared.servers.issuer)),
        };
        match self.complete(answer.clone()).await {
            Completed::Yes => {}
            Completed::Refused(reason) => panic!("{}: {reason:?} of a flow that was begun", self.subject),
            Completed::Broken => {
                self.shared.counts.broken.fetch_add(1, Ordering::Relaxed);
                // Half of them reload the page.
                if self.chance.below(2) == 0 && self.is_still_open(&answer, &code).await {
                    self.shared.counts.open.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                self.find_out().await;
            }
        }
    }

    /// Whether the same answer is taken now, which it is only where its code did not go out.
    async fn is_still_open(&mut self, answer: &CompleteAuthorizationRequest, code: &str) -> bool {
        loop {
            self.pause().await;
            let went = self.shared.servers.exchanges().iter().filter(|sent| *sent == code).count();
            match self.complete(answer.clone()).await {
                Completed::Yes => {
                    assert_eq!(went, 0, "{}: completed with a code that had been sent", self.subject);
                    return true;
                }
                Completed::Refused(Reason::AlreadyUsed) => return false,
                Completed::Refused(reason) => panic!("{}: {reason:?} of a flow that was begun", self.subject),
                Completed::Broken => {}
            }
        }
    }

    /// After a flow that broke off: there is a token, or one starts again.
    async fn find_out(&mut self) {
        loop {
            self.pause().await;
            match self.token().await {
                Given::Token => return,
                Given::NotFound => {
                    self.shared.counts.again.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                Given::Broken => {}
            }
        }
    }

    pub async fn begin(&mut self) -> Option<proto::Begun> {
        let request = BeginAuthorizationRequest {
            client_id: CLIENT.to_owned(),
            redirect_uri: CALLBACK.to_owned(),
            upstream: self.shared.servers.upstream_of(NAME),
            authorization_server: String::new(),
            user: Some(person(ISSUER, &self.subject)),
            browser_hash: vec![7; 32],
            return_to: "/after".to_owned(),
            shown_issuer: format!("{}/{NAME}", self.shared.servers.issuer),
            ..BeginAuthorizationRequest::default()
        };
        let answer = self.shared.choreographer.clone().begin_authorization(request).await.ok()?;
        match answer.into_inner().outcome.expect("an outcome") {
            begin_authorization_response::Outcome::Begun(begun) => {
                self.step(&self.shared.counts.begun);
                Some(begun)
            }
            begin_authorization_response::Outcome::Refusal(refusal) => match refusal.reason() {
                // The store is being killed.
                begin_refusal::Reason::Failed
                | begin_refusal::Reason::Unavailable
                | begin_refusal::Reason::TimedOut => None,
                _ => panic!("{}: {refusal:?}", self.subject),
            },
        }
    }

    async fn complete(&self, answer: CompleteAuthorizationRequest) -> Completed {
        let Ok(answer) = self.shared.choreographer.clone().complete_authorization(answer).await else {
            return Completed::Broken;
        };
        match answer.into_inner().outcome.expect("an outcome") {
            complete_authorization_response::Outcome::Completed(_) => {
                self.account(|account| account.since = account.codes.len().checked_sub(1));
                self.step(&self.shared.counts.completed);
                Completed::Yes
            }
            complete_authorization_response::Outcome::Refusal(refusal) => match refusal.reason() {
                Reason::Failed | Reason::Unavailable | Reason::TimedOut => Completed::Broken,
                reason => Completed::Refused(reason),
            },
        }
    }

    /// Asks for a token. It is this user's own, and not of a flow before the one that they were told of.
    async fn token(&self) -> Given {
        let request = GetUpstreamTokenRequest {
            user: Some(person(ISSUER, &self.subject)),
            client_id: CLIENT.to_owned(),
            upstream: self.shared.servers.upstream_of(NAME),
            authorization_server: String::new(),
            ..GetUpstreamTokenRequest::default()
        };
        match self.shared.tokens.clone().get_upstream_token(request).await {
            Ok(answer) => {
                let origin = self.shared.servers.origin(&answer.into_inner().access_token);
                let origin = origin.expect("one of the server's");
                self.account(|account| {
                    let of = account.codes.iter().position(|code| *code == origin).expect("one of this user's");
                    assert!(Some(of) >= account.since, "{}: {of} after {:?}", self.subject, account.since);
                    account.since = Some(of);
                });
                self.step(&self.shared.counts.tokens);
                Given::Token
            }
            Err(status) if status.code() == Code::NotFound => {
                assert!(!self.is_connected(), "{}: the token is lost", self.subject);
                self.step(&self.shared.counts.tokens);
                Given::NotFound
            }
            Err(status) => {
                assert_ne!(status.code(), Code::InvalidArgument, "{status:?}");
                Given::Broken
            }
        }
    }
}
