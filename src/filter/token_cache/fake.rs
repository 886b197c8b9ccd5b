//! A service of tokens that does what a test tells it, at a time that the test sets.

use std::{
    cell::Cell,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use foldhash::quality::RandomState;
use moka::sync::Cache;
use tokio::{sync::Semaphore, task::yield_now, time::timeout};
use tokio_util::task::TaskTracker;

use super::{Cached, awaited::Awaited, known::Known};
use crate::{
    contract::{
        error::Cause,
        tokens::{AccessToken, Missing, Refused, Renewal, TokenError, TokenOwner, TokenTag, UpstreamTokens},
    },
    filter::bearer::Bearer,
    model::{
        client::ClientId,
        clock::UnixTime,
        secret::Secret,
        shares::{ShareLimits, Shares},
        trace::Trace,
        upstream::Upstream,
        user::User,
    },
};

/// The time of day at the beginning of each test.
pub(super) const DAWN: u64 = 1_800_000_000;

thread_local! {
    static SINCE: Cell<(Instant, Duration)> = Cell::new((Instant::now(), Duration::ZERO));
}

fn now() -> Instant {
    let (start, since) = SINCE.get();
    start + since
}

fn clock() -> UnixTime {
    UnixTime::from_secs(DAWN) + SINCE.get().1.as_secs()
}

/// Later, in milliseconds since the test began.
pub(super) fn at(millis: u64) {
    SINCE.set((SINCE.get().0, Duration::from_millis(millis)));
}

/// Hands out what it is told to, and counts.
pub(super) struct Fake {
    calls: AtomicUsize,
    /// A permit for each call that may go on.
    pub gate: Semaphore,
    answer: Mutex<Answer>,
    /// How many wait for a token to come.
    pub waiting: Arc<AtomicUsize>,
}

/// One who waits, while it does.
struct Here(Arc<AtomicUsize>);

impl Here {
    fn new(waiting: &Arc<AtomicUsize>) -> Self {
        waiting.fetch_add(1, Relaxed);
        Self(Arc::clone(waiting))
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

type Answer = Box<dyn Fn(usize) -> Result<AccessToken, TokenError> + Send>;

#[async_trait]
impl UpstreamTokens for Fake {
    async fn upstream_token(&self, _: TokenOwner, _: &Trace) -> Result<AccessToken, TokenError> {
        let call = self.calls.fetch_add(1, Relaxed) + 1;
        self.gate.acquire().await.expect("open").forget();
        (self.answer.lock().unwrap_or_else(PoisonError::into_inner))(call)
    }

    async fn awaited_token(&self, _: TokenOwner, longest: Duration, _: &Trace) -> Result<AccessToken, TokenError> {
        let call = self.calls.fetch_add(1, Relaxed) + 1;
        let _here = Here::new(&self.waiting);
        match timeout(longest, self.gate.acquire()).await {
            Ok(permit) => permit.expect("open").forget(),
            Err(_) => return Err(LOST),
        }
        (self.answer.lock().unwrap_or_else(PoisonError::into_inner))(call)
    }

    async fn expect_again(&self, _: TokenOwner, _: &Trace) -> Result<(), TokenError> {
        self.gate.acquire().await.expect("open").forget();
        Ok(())
    }

    async fn refused(&self, _: TokenOwner, _: Refused, _: &Trace) -> Result<Renewal, TokenError> {
        Ok(Renewal::Renewed)
    }

    async fn disconnect(&self, _: TokenOwner, _: &Trace) -> Result<(), TokenError> {
        self.gate.acquire().await.expect("open").forget();
        Ok(())
    }
}

impl Fake {
    pub fn answers(&self, answer: impl Fn(usize) -> Result<AccessToken, TokenError> + Send + 'static) {
        *self.answer.lock().expect("no panic") = Box::new(answer);
    }

    pub fn calls(&self) -> usize {
        self.calls.load(Relaxed)
    }
}

/// The token of a call, named after it.
pub(super) fn token(call: usize) -> AccessToken {
    let tag = TokenTag([u8::try_from(call).expect("few calls"); 16]);
    AccessToken { secret: Secret::new(format!("token-{call}")), tag, expires_at: None, again: None }
}

/// The cache under test, with all gates open.
pub(super) fn cached(longest: Duration, limits: ShareLimits) -> (Arc<Cached>, Arc<Fake>) {
    at(0);
    let fake = Arc::new(Fake {
        calls: AtomicUsize::new(0),
        gate: Semaphore::new(Semaphore::MAX_PERMITS),
        answer: Mutex::new(Box::new(|call| Ok(token(call)))),
        waiting: Arc::default(),
    });
    let known = Known {
        kept: Cache::builder().max_capacity(10).build_with_hasher(RandomState::default()),
        under_way: Mutex::default(),
        longest,
        now,
        clock,
    };
    let cached = Cached {
        inner: fake.clone(),
        known: Arc::new(known),
        shares: Shares::new(limits),
        awaited: Awaited::new(fake.clone()),
        calls: TaskTracker::new(),
    };
    (Arc::new(cached), fake)
}

pub(super) const MANY: ShareLimits = ShareLimits { in_all: 100, of_user: 100, of_server: 100 };
pub(super) const LOST: TokenError = TokenError::NotFound(Missing::Lost);
pub(super) const DOWN: TokenError = TokenError::Unavailable(Cause::Borrowed("the store is away"));
pub(super) const FIVE: Duration = Duration::from_secs(5);

pub(super) fn close(fake: &Fake) {
    fake.gate.forget_permits(Semaphore::MAX_PERMITS);
}

pub(super) fn owner() -> TokenOwner {
    TokenOwner {
        user: User::Subject { issuer: "i".to_owned(), subject: "anna".to_owned() },
        client_id: ClientId::new("https://a.example/c"),
        upstream: Upstream { url: "https://u.example/mcp".to_owned(), authorization_server: None, resource: None },
    }
}

pub(super) fn text(bearer: &Bearer) -> String {
    let [("authorization", value)] = &bearer.edits.set[..] else { panic!("{:?}", bearer.edits) };
    let text = String::from_utf8(value.to_vec()).expect("text");
    text.strip_prefix("Bearer ").expect("its scheme").to_owned()
}

/// What a request gets, as traffic asks for it.
pub(super) async fn get(cached: &Cached, owner: &TokenOwner) -> Result<String, TokenError> {
    if let Some(bearer) = cached.cached(owner) {
        return Ok(text(&bearer));
    }
    let look_up = cached.look_up(owner, &Trace::default()).expect("a share");
    look_up.await.map(|bearer| text(&bearer))
}

pub(super) fn is(token: &str) -> Result<String, TokenError> {
    Ok(token.to_owned())
}

/// Lets all tasks of this thread run as far as they can.
pub(super) async fn settle() {
    for _ in 0..100 {
        yield_now().await;
    }
}
