//! The tokens that MCP traffic has just used, so that not every request takes a call.
//!
//! A look-up is made once for all who want the same token, and what it brings is kept for a short while. What is being
//! replaced or ended is forgotten before and after, with the look-ups that are under way: these began too early to know.

use std::{
    collections::HashMap,
    fmt,
    hash::{Hash, Hasher},
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use foldhash::quality::RandomState;
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared, ready},
};
use moka::{Equivalent, sync::Cache};
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;

use super::bearer::Bearer;
use crate::{
    contract::{
        error::Cause,
        tokens::{
            AccessToken, LONGEST_WAIT, LastSeen, OwnerRef, Refused, RefusedStatus, Renewal, TokenError, TokenOwner,
            TokenTag, UpstreamTokens,
        },
    },
    model::{
        clock::{Clock, UnixTime},
        joined::Joined,
        resource::ResourceIndicator,
        shares::{ShareLimits, Shares, UsedUp},
        trace::Trace,
        upstream::Upstream,
    },
};

/// How long a look-up may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long one call waits for a token to come: less than who waits does, so that it is known by then what there is.
const CALL: Duration = Duration::from_secs(10);
/// After a call that did not wait, the next is not made for this long.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest that a token is kept, whatever was asked for: nobody means more, and the cache takes no more than this.
const LONGEST: Duration = Duration::from_secs(86_400);

/// A look-up that is under way, or what it came to. It goes on when those who wait for it leave.
pub type LookUp = Shared<BoxFuture<'static, Result<Arc<Bearer>, TokenError>>>;

/// A wait for a token to come. Whoever drops it waits no longer.
pub type Wait = BoxFuture<'static, Result<Arc<Bearer>, TokenError>>;

/// Tokens, of which those that were just handed out are kept.
pub struct Cached {
    inner: Arc<dyn UpstreamTokens>,
    known: Arc<Known>,
    /// The look-ups under way: a user's, so that one who has many clients leaves something for the others, and an
    /// upstream's, so that a slow authorization server holds up nobody but who needs it. Who waits for the look-up of
    /// another request takes nothing.
    shares: Shares,
    waits: Joined<TokenOwner, LastSeen, Result<Arc<Bearer>, TokenError>>,
    calls: TaskTracker,
}

/// What is kept, and what is looked up. A token is put in and forgotten under the lock of the look-ups, so that none
/// comes in by a look-up that was forgotten before.
struct Known {
    kept: Cache<Place, Arc<Kept>, RandomState>,
    under_way: Mutex<UnderWay>,
    longest: Duration,
    now: fn() -> Instant,
    clock: Clock,
}

#[derive(Default)]
struct UnderWay {
    /// How many began; each has its number.
    begun: u64,
    by_place: HashMap<Place, Begun>,
}

struct Begun {
    number: u64,
    at: Instant,
    owner: TokenOwner,
    look_up: LookUp,
    /// Whether what it brings may be kept: not where the upstream refused a token since it began.
    keeps: bool,
}

/// A token that is kept.
struct Kept {
    beside: Beside,
    bearer: Arc<Bearer>,
    until: Instant,
    renew_at: Instant,
    is_renewing: AtomicBool,
}

/// What a hand-out depends on beside its place.
struct Beside {
    authorization_server: Option<String>,
    resource: Option<ResourceIndicator>,
}

impl Beside {
    fn of(owner: OwnerRef<'_>) -> Self {
        let OwnerRef { user: _, client_id: _, upstream: Upstream { url: _, authorization_server, resource } } = owner;
        Self { authorization_server: authorization_server.clone(), resource: resource.clone() }
    }

    /// Whether this is what there is of an owner; nothing of it is copied.
    fn is_of(&self, owner: OwnerRef<'_>) -> bool {
        let Self { authorization_server, resource } = self;
        (authorization_server, resource) == (&owner.upstream.authorization_server, &owner.upstream.resource)
    }
}

/// Where a token is kept: under its user, route and upstream, as in the store. Of owners that differ only in what the
/// operator says besides, one has its token there; so whatever was said, it is found when it is to be forgotten.
#[derive(Clone)]
struct Place(TokenOwner);

/// The same, borrowed, to look for one.
struct PlaceOf<'a>(OwnerRef<'a>);

impl Hash for Place {
    fn hash<H: Hasher>(&self, state: &mut H) {
        PlaceOf((&self.0).into()).hash(state);
    }
}

impl Hash for PlaceOf<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.0.user, self.0.client_id, &self.0.upstream.url).hash(state);
    }
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        PlaceOf((&self.0).into()).equivalent(other)
    }
}

impl Eq for Place {}

impl Equivalent<Place> for PlaceOf<'_> {
    fn equivalent(&self, Place(other): &Place) -> bool {
        let (Self(owner), other) = (self, OwnerRef::from(other));
        (owner.user, owner.client_id, &owner.upstream.url) == (other.user, other.client_id, &other.upstream.url)
    }
}

impl Known {
    fn lock(&self) -> MutexGuard<'_, UnderWay> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what a look-up came to, unless it was forgotten.
    fn end(&self, owner: TokenOwner, number: u64, result: &Result<Arc<Bearer>, TokenError>) {
        let place = Place(owner);
        let mut under_way = self.lock();
        if under_way.by_place.get(&place).is_none_or(|begun| begun.number != number) {
            return;
        }
        let Some(Begun { at, keeps, .. }) = under_way.by_place.remove(&place) else { return };
        match result {
            Ok(bearer) if keeps => {
                if let Some(kept) = self.to_keep(&place.0, bearer, at) {
                    self.kept.insert(place, Arc::new(kept));
                }
            }
            // Somewhere else it was ended.
            Err(TokenError::NotFound(_)) => self.kept.invalidate(&PlaceOf((&place.0).into())),
            Ok(_) | Err(TokenError::Unavailable(_)) => {}
        }
    }

    /// None where it is to be kept for no time. That counts from when the look-up began: what somebody ended since, and
    /// elsewhere, is not known here.
    fn to_keep(&self, owner: &TokenOwner, bearer: &Arc<Bearer>, began: Instant) -> Option<Kept> {
        let now = (self.now)();
        let life = (began + self.longest).saturating_duration_since(now).min(bearer.is_good_for((self.clock)()));
        (!life.is_zero()).then(|| Kept {
            beside: Beside::of(owner.into()),
            bearer: Arc::clone(bearer),
            until: now + life,
            renew_at: now + life / 2,
            is_renewing: AtomicBool::new(false),
        })
    }

    /// What is kept of an owner and not over, at this time.
    fn fresh(&self, owner: OwnerRef<'_>, now: Instant) -> Option<Arc<Kept>> {
        self.kept.get(&PlaceOf(owner)).filter(|kept| kept.beside.is_of(owner) && kept.until > now)
    }
}

impl Cached {
    /// Keeps each token for `longest` at most, and `most` of them. `limits` is for the look-ups; `calls` are where these
    /// go, which shutdown waits for.
    pub fn new(
        inner: Arc<dyn UpstreamTokens>,
        longest: Duration,
        most: u64,
        limits: ShareLimits,
        calls: TaskTracker,
    ) -> Self {
        let longest = longest.min(LONGEST);
        let known = Known {
            // Each entry has its own end, which is never later: this is for the memory of what nobody asks for.
            kept: Cache::builder().max_capacity(most).time_to_live(longest).build_with_hasher(RandomState::default()),
            under_way: Mutex::default(),
            longest,
            now: Instant::now,
            clock: UnixTime::now,
        };
        Self { inner, known: Arc::new(known), shares: Shares::new(limits), waits: Joined::default(), calls }
    }

    /// The owner's token, if it is here. One that is no longer young is looked up again behind the caller's back; where
    /// that fails, it stays to its end.
    pub fn cached<'a>(&self, owner: impl Into<OwnerRef<'a>>) -> Option<Arc<Bearer>> {
        let owner = owner.into();
        let now = (self.known.now)();
        let kept = self.known.fresh(owner, now)?;
        if kept.renew_at <= now && !kept.is_renewing.swap(true, Relaxed) {
            // It is no request's own call, and so of no request's trace.
            let begun = self.begin(self.known.lock(), &owner.to_owner(), &Trace::default());
            kept.is_renewing.store(begun.is_ok(), Relaxed);
        }
        Some(Arc::clone(&kept.bearer))
    }

    /// The look-up of the owner's token that is under way, or one that begins now.
    ///
    /// # Errors
    /// Where one would have to begin, and as many are under way as may be: whose part is in use.
    pub fn look_up(&self, owner: &TokenOwner, trace: &Trace) -> Result<LookUp, UsedUp> {
        let under_way = self.known.lock();
        // One that ended since the caller saw that there is no token.
        if let Some(kept) = self.known.fresh(owner.into(), (self.known.now)()) {
            return Ok(ready(Ok(Arc::clone(&kept.bearer))).boxed().shared());
        }
        self.begin(under_way, owner, trace)
    }

    fn begin(
        &self,
        mut under_way: MutexGuard<'_, UnderWay>,
        owner: &TokenOwner,
        trace: &Trace,
    ) -> Result<LookUp, UsedUp> {
        let place = Place(owner.clone());
        if let Some(begun) = under_way.by_place.get(&place).filter(|begun| begun.owner == *owner) {
            return Ok(begun.look_up.clone());
        }
        let share = self.shares.take(Some(&owner.user), &owner.upstream.url)?;
        under_way.begun += 1;
        let (number, at) = (under_way.begun, (self.known.now)());
        let (inner, known, of, trace) =
            (Arc::clone(&self.inner), Arc::clone(&self.known), owner.clone(), trace.clone());
        // A task of its own: others may wait for it when the one who began it leaves, and a bug in it ends it alone.
        let task = self.calls.spawn(async move {
            let _share = share;
            let call = AssertUnwindSafe(inner.upstream_token(of.clone(), &trace)).catch_unwind();
            let result = match timeout(DEADLINE, call).await {
                Ok(Ok(result)) => result.and_then(fit).map(Arc::new),
                Ok(Err(_)) => Err(unavailable("the look-up ended without an answer: a fault of envoy-cimd itself")),
                Err(_) => Err(unavailable("the look-up of the token took too long")),
            };
            known.end(of, number, &result);
            result
        });
        let look_up =
            async move { task.await.unwrap_or_else(|_| Err(unavailable("the look-up was ended: this process stops"))) }
                .boxed()
                .shared();
        let begun = Begun { number, at, owner: owner.clone(), look_up: look_up.clone(), keeps: true };
        under_way.by_place.insert(place, begun);
        Ok(look_up)
    }

    /// Waits for the owner's token to come, for [`LONGEST_WAIT`] at most: one call for all who wait for it, which ends when
    /// the last of them leaves. It takes no share of the look-ups: whoever waits holds a request, and as many wait as may be
    /// held. What it brings is not kept.
    pub fn awaited(&self, owner: &TokenOwner, trace: &Trace) -> Wait {
        let (last, wait) = self.waits.join(owner, |last| {
            let (inner, owner, trace) = (Arc::clone(&self.inner), owner.clone(), trace.clone());
            async move {
                loop {
                    let began = tokio::time::Instant::now();
                    let call = AssertUnwindSafe(inner.awaited_token(owner.clone(), CALL, &trace)).catch_unwind();
                    match call.await {
                        Ok(Err(TokenError::NotFound(missing))) => last.set(missing),
                        Ok(result) => return result.and_then(fit).map(Arc::new),
                        Err(_) => return Err(unavailable("the wait ended early: a fault of envoy-cimd itself")),
                    }
                    // A service of an earlier version does not wait.
                    if began.elapsed() < CALL / 2 {
                        sleep(PAUSE).await;
                    }
                }
            }
        });
        let result = async move {
            let late = || last.error("it did not show in time whether a token came");
            timeout(LONGEST_WAIT, wait).await.unwrap_or_else(|_| Err(late()))
        };
        result.boxed()
    }

    /// Forgets what is kept of an owner, now and again when the change that is being made is over, however it ends.
    pub fn changing(self: &Arc<Self>, owner: TokenOwner) -> Changing<Arc<Self>> {
        Changing::of(Arc::clone(self), owner)
    }

    fn forget(&self, owner: &TokenOwner) {
        let mut under_way = self.known.lock();
        under_way.by_place.remove(&Place(owner.clone()));
        self.known.kept.invalidate(&PlaceOf(owner.into()));
    }

    /// Forgets a token that the upstream refused; a newer one stays. What is looked up now may bring it again, and is not
    /// kept.
    fn drop_refused(&self, owner: &TokenOwner, tag: TokenTag) {
        let mut under_way = self.known.lock();
        if let Some(begun) = under_way.by_place.get_mut(&Place(owner.clone())) {
            begun.keeps = false;
        }
        let place = PlaceOf(owner.into());
        if self.known.kept.get(&place).is_some_and(|kept| kept.bearer.tag == tag) {
            self.known.kept.invalidate(&place);
        }
    }

    /// Lets go of what is over: without it, a token that nobody asks for stays in memory past its end.
    pub fn tidy(&self) {
        self.known.kept.run_pending_tasks();
    }
}

impl fmt::Debug for Cached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cached").field("kept", &self.known.kept.entry_count()).finish_non_exhaustive()
    }
}

/// A change of an owner's token that is under way.
pub struct Changing<C: std::ops::Deref<Target = Cached>> {
    cached: C,
    owner: TokenOwner,
}

impl<C: std::ops::Deref<Target = Cached>> Changing<C> {
    fn of(cached: C, owner: TokenOwner) -> Self {
        cached.forget(&owner);
        Self { cached, owner }
    }
}

impl<C: std::ops::Deref<Target = Cached>> Drop for Changing<C> {
    fn drop(&mut self) {
        self.cached.forget(&self.owner);
    }
}

/// For other processes: what they change is forgotten here, and what they are given is what there is now. They keep it
/// themselves, and two such times, one after the other, would be longer than any of them promises.
#[async_trait]
impl UpstreamTokens for Cached {
    async fn upstream_token(&self, owner: TokenOwner, trace: &Trace) -> Result<AccessToken, TokenError> {
        self.inner.upstream_token(owner, trace).await
    }

    async fn awaited_token(
        &self,
        owner: TokenOwner,
        longest: Duration,
        trace: &Trace,
    ) -> Result<AccessToken, TokenError> {
        self.inner.awaited_token(owner, longest, trace).await
    }

    async fn expect_again(&self, owner: TokenOwner, trace: &Trace) -> Result<(), TokenError> {
        // What is kept does not say so.
        let _marking = Changing::of(self, owner.clone());
        self.inner.expect_again(owner, trace).await
    }

    async fn refused(&self, owner: TokenOwner, refused: Refused, trace: &Trace) -> Result<Renewal, TokenError> {
        // One that is not enough for one request is for others.
        let bad = (refused.status == RefusedStatus::Unauthorized).then_some(refused.tag);
        let forget = || bad.into_iter().for_each(|tag| self.drop_refused(&owner, tag));
        forget();
        let result = self.inner.refused(owner.clone(), refused, trace).await;
        // A look-up that began before the refresh was over may have brought it back.
        forget();
        result
    }

    async fn disconnect(&self, owner: TokenOwner, trace: &Trace) -> Result<(), TokenError> {
        let _ending = Changing::of(self, owner.clone());
        self.inner.disconnect(owner, trace).await
    }
}

fn fit(token: AccessToken) -> Result<Bearer, TokenError> {
    Bearer::new(token).ok_or_else(|| unavailable("the token has characters that no header may have, and is not sent"))
}

fn unavailable(cause: impl Into<Cause>) -> TokenError {
    TokenError::Unavailable(cause.into())
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, sync::atomic::AtomicUsize};

    use tokio::{sync::Semaphore, task::yield_now};

    use super::*;
    use crate::{
        contract::tokens::Missing,
        model::{client::ClientId, secret::Secret, upstream::Upstream, user::User},
    };

    /// The time of day at the beginning of each test.
    const DAWN: u64 = 1_800_000_000;

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
    fn at(millis: u64) {
        SINCE.set((SINCE.get().0, Duration::from_millis(millis)));
    }

    /// Hands out what it is told to, and counts.
    struct Fake {
        calls: AtomicUsize,
        /// A permit for each call that may go on.
        gate: Semaphore,
        answer: Mutex<Answer>,
        /// How many wait for a token to come.
        waiting: Arc<AtomicUsize>,
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
        fn answers(&self, answer: impl Fn(usize) -> Result<AccessToken, TokenError> + Send + 'static) {
            *self.answer.lock().expect("no panic") = Box::new(answer);
        }

        fn calls(&self) -> usize {
            self.calls.load(Relaxed)
        }
    }

    /// The token of a call, named after it.
    fn token(call: usize) -> AccessToken {
        let tag = TokenTag([u8::try_from(call).expect("few calls"); 16]);
        AccessToken { secret: Secret::new(format!("token-{call}")), tag, expires_at: None, again: None }
    }

    /// The cache under test, with all gates open.
    fn cached(longest: Duration, limits: ShareLimits) -> (Arc<Cached>, Arc<Fake>) {
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
            waits: Joined::default(),
            calls: TaskTracker::new(),
        };
        (Arc::new(cached), fake)
    }

    const MANY: ShareLimits = ShareLimits { in_all: 100, of_user: 100, of_server: 100 };
    const LOST: TokenError = TokenError::NotFound(Missing::Lost);
    const DOWN: TokenError = TokenError::Unavailable(Cause::Borrowed("the store is away"));
    const FIVE: Duration = Duration::from_secs(5);

    fn close(fake: &Fake) {
        fake.gate.forget_permits(Semaphore::MAX_PERMITS);
    }

    fn owner() -> TokenOwner {
        TokenOwner {
            user: User::Subject { issuer: "i".to_owned(), subject: "anna".to_owned() },
            client_id: ClientId::new("https://a.example/c"),
            upstream: Upstream { url: "https://u.example/mcp".to_owned(), authorization_server: None, resource: None },
        }
    }

    fn text(bearer: &Bearer) -> String {
        let [("authorization", value)] = &bearer.edits.set[..] else { panic!("{:?}", bearer.edits) };
        let text = String::from_utf8(value.to_vec()).expect("text");
        text.strip_prefix("Bearer ").expect("its scheme").to_owned()
    }

    /// What a request gets, as traffic asks for it.
    async fn get(cached: &Cached, owner: &TokenOwner) -> Result<String, TokenError> {
        if let Some(bearer) = cached.cached(owner) {
            return Ok(text(&bearer));
        }
        let look_up = cached.look_up(owner, &Trace::default()).expect("a share");
        look_up.await.map(|bearer| text(&bearer))
    }

    fn is(token: &str) -> Result<String, TokenError> {
        Ok(token.to_owned())
    }

    /// Lets all tasks of this thread run as far as they can.
    async fn settle() {
        for _ in 0..100 {
            yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_token_is_kept_for_its_time() {
        let (cached, fake) = cached(FIVE, MANY);
        for (millis, token, calls) in
            [(0, "token-1", 1), (2499, "token-1", 1), (5001, "token-2", 2), (7000, "token-2", 2)]
        {
            at(millis);
            assert_eq!(get(&cached, &owner()).await, is(token), "{millis}");
            assert_eq!(fake.calls(), calls, "{millis}");
        }
        let (cached, fake) = self::cached(Duration::ZERO, MANY);
        for calls in 1..4 {
            assert_eq!(get(&cached, &owner()).await, is(&format!("token-{calls}")));
            assert_eq!(fake.calls(), calls, "none is kept");
        }
    }

    /// One that ends while it is kept is not sent when it would end on its way.
    #[tokio::test]
    async fn never_past_its_end() {
        for (life, kept_until) in [(0, None), (5, None), (6, Some(1000)), (9, Some(4000)), (600, Some(5000))] {
            let (cached, fake) = cached(FIVE, MANY);
            fake.answers(move |call| {
                Ok(AccessToken { expires_at: Some(UnixTime::from_secs(DAWN) + life), ..token(call) })
            });
            assert_eq!(get(&cached, &owner()).await, is("token-1"));
            match kept_until {
                None => assert!(cached.cached(&owner()).is_none(), "{life}"),
                Some(until) => {
                    at(until - 1);
                    assert!(cached.cached(&owner()).is_some(), "{life}");
                    at(until);
                    assert!(cached.cached(&owner()).is_none(), "{life}");
                }
            }
        }
    }

    #[tokio::test]
    async fn a_thousand_at_once_are_one_call() {
        let (cached, fake) = cached(FIVE, ShareLimits { in_all: 1, of_user: 1, of_server: 1 });
        close(&fake);
        let all: Vec<_> = (0..1000).map(|_| cached.look_up(&owner(), &Trace::default()).expect("shared")).collect();
        settle().await;
        assert_eq!(fake.calls(), 1);
        fake.gate.add_permits(1000);
        for look_up in all {
            assert_eq!(look_up.await.map(|bearer| text(&bearer)), is("token-1"));
        }
        assert_eq!(fake.calls(), 1);
    }

    /// The same on many threads, where one may end between another's look and its call.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn none_comes_between() {
        let (cached, fake) = cached(FIVE, MANY);
        let all: Vec<_> = (0..1000)
            .map(|_| {
                let cached = Arc::clone(&cached);
                tokio::spawn(async move { get(&cached, &owner()).await })
            })
            .collect();
        for one in all {
            assert_eq!(one.await.expect("no panic"), is("token-1"));
        }
        assert_eq!(fake.calls(), 1);
    }

    /// What takes long to look up may be long gone where it was found.
    #[tokio::test]
    async fn its_time_begins_with_its_look_up() {
        for (takes, kept_until) in [(3000, Some(5000)), (5000, None), (8000, None)] {
            let (cached, fake) = cached(FIVE, MANY);
            close(&fake);
            let look_up = cached.look_up(&owner(), &Trace::default()).expect("a share");
            at(takes);
            fake.gate.add_permits(1);
            assert_eq!(look_up.await.map(|bearer| text(&bearer)), is("token-1"));
            assert_eq!(cached.cached(&owner()).is_some(), kept_until.is_some(), "{takes}");
            at(kept_until.unwrap_or(takes));
            assert!(cached.cached(&owner()).is_none(), "{takes}");
        }
    }

    /// Whoever began a look-up may leave: it goes on for the others, and where none is left, for those to come.
    #[tokio::test]
    async fn a_look_up_outlives_who_began_it() {
        let (cached, fake) = cached(FIVE, MANY);
        close(&fake);
        let mut first = cached.look_up(&owner(), &Trace::default()).expect("a share");
        assert!((&mut first).now_or_never().is_none(), "it waits");
        let second = cached.look_up(&owner(), &Trace::default()).expect("the same");
        drop(first);
        fake.gate.add_permits(1);
        assert_eq!(second.await.map(|bearer| text(&bearer)), is("token-1"));

        let (cached, fake) = self::cached(FIVE, MANY);
        close(&fake);
        drop(cached.look_up(&owner(), &Trace::default()));
        fake.gate.add_permits(1);
        settle().await;
        assert_eq!(cached.cached(&owner()).map(|bearer| text(&bearer)).as_deref(), Some("token-1"));
        assert_eq!(fake.calls(), 1);
    }

    #[tokio::test]
    async fn a_panic_ends_its_look_up_alone() {
        let (cached, fake) = cached(FIVE, ShareLimits { in_all: 1, of_user: 1, of_server: 1 });
        fake.answers(|call| if call == 1 { panic!("a bug") } else { Ok(token(call)) });
        let look_ups = [(); 2].map(|()| cached.look_up(&owner(), &Trace::default()).expect("a share"));
        for look_up in look_ups {
            assert!(matches!(look_up.await, Err(TokenError::Unavailable(_))));
        }
        assert_eq!(get(&cached, &owner()).await, is("token-2"), "its share came back, and nobody waits for it");
    }

    #[tokio::test]
    async fn it_is_renewed_on_a_hit_only_and_once() {
        let (cached, fake) = cached(FIVE, MANY);
        assert_eq!(get(&cached, &owner()).await, is("token-1"));
        at(2499);
        assert_eq!(get(&cached, &owner()).await, is("token-1"));
        settle().await;
        assert_eq!(fake.calls(), 1, "it is young");
        at(2500);
        settle().await;
        assert_eq!(fake.calls(), 1, "nobody asks");
        close(&fake);
        for _ in 0..100 {
            assert_eq!(get(&cached, &owner()).await, is("token-1"), "nobody waits for it");
        }
        settle().await;
        assert_eq!(fake.calls(), 2);
        fake.gate.add_permits(1);
        settle().await;
        assert_eq!(get(&cached, &owner()).await, is("token-2"));
        at(7499);
        assert_eq!(get(&cached, &owner()).await, is("token-2"), "it has a time of its own");
    }

    /// A renewal that fails leaves the token to its end, and is not tried again; one that finds none ends it.
    #[tokio::test]
    async fn a_renewal_may_fail() {
        for (error, after) in [(DOWN, is("token-1")), (LOST, Err(LOST))] {
            let (cached, fake) = cached(FIVE, MANY);
            assert_eq!(get(&cached, &owner()).await, is("token-1"));
            fake.answers(move |_| Err(error.clone()));
            at(3000);
            assert_eq!(get(&cached, &owner()).await, is("token-1"));
            settle().await;
            assert_eq!(fake.calls(), 2);
            assert_eq!(get(&cached, &owner()).await, after);
            settle().await;
            assert_eq!(fake.calls(), if after.is_ok() { 2 } else { 3 });
            at(5000);
            assert!(get(&cached, &owner()).await.is_err(), "never past its time");
        }
    }

    #[tokio::test]
    async fn only_tokens_are_kept() {
        for error in [LOST, DOWN] {
            let (cached, fake) = cached(FIVE, MANY);
            let fails = error.clone();
            fake.answers(move |call| if call < 3 { Err(fails.clone()) } else { Ok(token(call)) });
            for expected in [Err(error.clone()), Err(error), is("token-3"), is("token-3")] {
                assert_eq!(get(&cached, &owner()).await, expected);
            }
            assert_eq!(fake.calls(), 3);
        }
    }

    /// A look-up that began before a change puts nothing in after it, and nobody who comes after it waits for that.
    #[tokio::test]
    async fn a_change_forgets_what_was_under_way() {
        let (cached, fake) = cached(FIVE, MANY);
        assert_eq!(get(&cached, &owner()).await, is("token-1"));
        let changing = cached.changing(owner());
        assert!(cached.cached(&owner()).is_none(), "at once");
        close(&fake);
        let during = cached.look_up(&owner(), &Trace::default()).expect("a share");
        settle().await;
        drop(changing);
        let after = cached.look_up(&owner(), &Trace::default()).expect("another");
        settle().await;
        assert_eq!(fake.calls(), 3, "it does not wait for one that began before");
        fake.gate.add_permits(1);
        assert_eq!(during.await.map(|bearer| text(&bearer)), is("token-2"));
        assert!(cached.cached(&owner()).is_none(), "it is not kept");
        fake.gate.add_permits(1);
        assert_eq!(after.await.map(|bearer| text(&bearer)), is("token-3"));
        assert_eq!(get(&cached, &owner()).await, is("token-3"));

        // What came and was kept while it was being changed goes as well.
        let changing = cached.changing(owner());
        fake.gate.add_permits(2);
        assert_eq!(get(&cached, &owner()).await, is("token-4"));
        drop(changing);
        assert_eq!(get(&cached, &owner()).await, is("token-5"));
    }

    #[tokio::test]
    async fn a_disconnect_forgets_whatever_the_operator_says_besides() {
        let (cached, fake) = cached(FIVE, MANY);
        let pinned = TokenOwner {
            upstream: Upstream { authorization_server: Some("https://as.example".to_owned()), ..owner().upstream },
            ..owner()
        };
        assert_eq!(get(&cached, &pinned).await, is("token-1"));
        close(&fake);
        let of = cached.clone();
        let ending = tokio::spawn(async move { of.disconnect(owner(), &Trace::default()).await });
        settle().await;
        assert!(cached.cached(&pinned).is_none(), "before it is over");
        fake.gate.add_permits(2);
        assert_eq!(ending.await.expect("no panic"), Ok(()));
        assert_eq!(get(&cached, &pinned).await, is("token-2"));
    }

    /// Another process that asks keeps what it gets for as long as this one does.
    #[tokio::test]
    async fn others_get_what_there_is_now() {
        let (cached, fake) = cached(FIVE, MANY);
        assert_eq!(get(&cached, &owner()).await, is("token-1"));
        let asks = async || cached.upstream_token(owner(), &Trace::default()).await;
        assert_eq!(asks().await.map(|token| token.secret.expose().to_owned()), is("token-2"));
        fake.answers(|_| Err(LOST));
        assert_eq!(asks().await.err(), Some(LOST));
        assert_eq!(get(&cached, &owner()).await, is("token-1"), "what is kept here is for this process");
    }

    #[tokio::test]
    async fn a_refused_token_goes_and_a_newer_one_stays() {
        let (cached, fake) = cached(FIVE, MANY);
        let refused =
            async |call| cached.refused(owner(), Refused::unauthorized(token(call).tag), &Trace::default()).await;
        assert_eq!(get(&cached, &owner()).await, is("token-1"));
        assert_eq!(refused(9).await, Ok(Renewal::Renewed));
        assert_eq!(get(&cached, &owner()).await, is("token-1"), "it is another one");
        assert_eq!(refused(1).await, Ok(Renewal::Renewed));
        assert_eq!(get(&cached, &owner()).await, is("token-2"));
        assert_eq!(refused(1).await, Ok(Renewal::Renewed));
        assert_eq!(get(&cached, &owner()).await, is("token-2"), "late reports of the old one change nothing");
        // What is looked up meanwhile may be the refused one.
        assert_eq!(refused(2).await, Ok(Renewal::Renewed));
        close(&fake);
        let look_up = cached.look_up(&owner(), &Trace::default()).expect("a share");
        assert_eq!(refused(2).await, Ok(Renewal::Renewed));
        fake.gate.add_permits(9);
        assert_eq!(look_up.await.map(|bearer| text(&bearer)), is("token-3"));
        assert!(cached.cached(&owner()).is_none());
        assert_eq!(get(&cached, &owner()).await, is("token-4"));
    }

    #[tokio::test]
    async fn nobody_gets_anothers_token() {
        let (cached, fake) = cached(FIVE, MANY);
        let user =
            |issuer: &str, subject: &str| User::Subject { issuer: issuer.to_owned(), subject: subject.to_owned() };
        let upstream = |url: &str, issuer: Option<&str>| Upstream {
            url: url.to_owned(),
            authorization_server: issuer.map(str::to_owned),
            resource: None,
        };
        let owners = [
            owner(),
            TokenOwner { user: user("i", "bert"), ..owner() },
            TokenOwner { user: user("j", "anna"), ..owner() },
            TokenOwner { user: user("ia", "nna"), ..owner() },
            TokenOwner { user: User::Single, ..owner() },
            TokenOwner { client_id: ClientId::new("https://b.example/c"), ..owner() },
            TokenOwner { upstream: upstream("https://u.example/other", None), ..owner() },
            TokenOwner { upstream: upstream("https://u.example/mcp", Some("https://as.example")), ..owner() },
            TokenOwner { upstream: upstream("https://u.example/mcp", Some("https://at.example")), ..owner() },
        ];
        for (before, owner) in owners.iter().enumerate() {
            assert_eq!(get(&cached, owner).await, is(&format!("token-{}", before + 1)));
        }
        assert_eq!(fake.calls(), owners.len());
        // The same for look-ups that are under way at once.
        close(&fake);
        let look_ups: Vec<_> = owners
            .iter()
            .map(|owner| {
                drop(cached.changing(owner.clone()));
                cached.look_up(owner, &Trace::default()).expect("a share")
            })
            .collect();
        fake.gate.add_permits(100);
        let mut tokens = Vec::new();
        for look_up in look_ups {
            tokens.push(look_up.await.map(|bearer| text(&bearer)).expect("a token"));
        }
        tokens.sort();
        tokens.dedup();
        assert_eq!(tokens.len(), owners.len());
    }

    #[tokio::test]
    async fn a_full_part_begins_nothing() {
        let (cached, fake) = cached(FIVE, ShareLimits { in_all: 3, of_user: 1, of_server: 2 });
        close(&fake);
        let of = |subject: &str, route: &str, server: &str| TokenOwner {
            user: User::Subject { issuer: "i".to_owned(), subject: subject.to_owned() },
            client_id: ClientId::new(route),
            upstream: Upstream { url: server.to_owned(), authorization_server: None, resource: None },
        };
        let begin = |owner| cached.look_up(&owner, &Trace::default()).map(drop);
        assert_eq!(begin(of("anna", "a", "slow")), Ok(()));
        assert_eq!(begin(of("anna", "a", "slow")), Ok(()), "who waits for it takes nothing");
        assert_eq!(begin(of("anna", "b", "fast")), Err(UsedUp::OfUser));
        assert_eq!(begin(of("bert", "a", "slow")), Ok(()));
        assert_eq!(begin(of("carl", "a", "slow")), Err(UsedUp::OfServer));
        assert_eq!(begin(of("carl", "a", "fast")), Ok(()));
        assert_eq!(begin(of("dora", "a", "other")), Err(UsedUp::InAll));
        settle().await;
        assert_eq!(fake.calls(), 3);
        fake.gate.add_permits(9);
        settle().await;
        assert_eq!(begin(of("dora", "a", "other")), Ok(()), "they came back");
    }

    #[tokio::test]
    async fn those_who_wait_for_a_token_share_one_wait() {
        let (cached, fake) = cached(FIVE, MANY);
        close(&fake);
        let all: Vec<_> = (0..200).map(|_| tokio::spawn(cached.awaited(&owner(), &Trace::default()))).collect();
        settle().await;
        assert_eq!((fake.calls(), fake.waiting.load(Relaxed)), (1, 1));
        fake.gate.add_permits(1);
        for wait in all {
            assert_eq!(wait.await.expect("no panic").map(|bearer| text(&bearer)), is("token-1"));
        }
        assert_eq!((fake.calls(), fake.waiting.load(Relaxed), cached.waits.count()), (1, 0, 0));
        assert!(cached.cached(&owner()).is_none(), "it may have been long on its way");
    }

    #[tokio::test]
    async fn a_wait_ends_with_the_last_who_leaves() {
        let (cached, fake) = cached(FIVE, MANY);
        close(&fake);
        let [first, second] = [(); 2].map(|()| tokio::spawn(cached.awaited(&owner(), &Trace::default())));
        settle().await;
        first.abort();
        settle().await;
        assert_eq!(fake.waiting.load(Relaxed), 1);
        second.abort();
        settle().await;
        assert_eq!((fake.calls(), fake.waiting.load(Relaxed), cached.waits.count()), (1, 0, 0));
    }

    /// However many hold a request, others get their tokens.
    #[tokio::test]
    async fn waits_take_nothing_from_look_ups() {
        let (cached, fake) = cached(FIVE, ShareLimits { in_all: 1, of_user: 1, of_server: 1 });
        close(&fake);
        let of = |route: usize| TokenOwner { client_id: ClientId::new(route.to_string()), ..owner() };
        let waits: Vec<_> = (0..100).map(|route| tokio::spawn(cached.awaited(&of(route), &Trace::default()))).collect();
        settle().await;
        assert_eq!(fake.waiting.load(Relaxed), 100, "each has one of its own");
        let look_up = cached.look_up(&of(100), &Trace::default()).expect("a share");
        fake.gate.add_permits(101);
        assert!(look_up.await.is_ok());
        for wait in waits {
            assert!(wait.await.expect("no panic").is_ok());
        }
    }

    /// Each has a time of its own, though one began before.
    #[tokio::test(start_paused = true)]
    async fn a_wait_that_brings_nothing_ends() {
        let (cached, fake) = cached(FIVE, MANY);
        close(&fake);
        let begin = tokio::time::Instant::now();
        let first = tokio::spawn(cached.awaited(&owner(), &Trace::default()));
        sleep(Duration::from_secs(13)).await;
        let second = tokio::spawn(cached.awaited(&owner(), &Trace::default()));
        assert_eq!(first.await.expect("no panic").err(), Some(LOST));
        assert_eq!(begin.elapsed().as_secs(), 20);
        assert_eq!(fake.waiting.load(Relaxed), 1, "it goes on for the other");
        assert_eq!(second.await.expect("no panic").err(), Some(LOST));
        assert_eq!(begin.elapsed().as_secs(), 33);
        settle().await;
        assert_eq!((fake.calls(), fake.waiting.load(Relaxed), cached.waits.count()), (4, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_that_does_not_wait_is_asked_once_a_second() {
        let (cached, fake) = cached(FIVE, MANY);
        fake.answers(|call| if call < 8 { Err(LOST) } else { Ok(token(call)) });
        let begin = tokio::time::Instant::now();
        assert_eq!(cached.awaited(&owner(), &Trace::default()).await.map(|bearer| text(&bearer)), is("token-8"));
        assert_eq!(begin.elapsed().as_secs(), 7);
        fake.answers(|_| Err(LOST));
        assert_eq!(cached.awaited(&owner(), &Trace::default()).await.err(), Some(LOST));
        assert!(fake.calls() <= 29, "{}", fake.calls());
    }

    #[tokio::test]
    async fn a_wait_fails_at_once_where_nobody_can_say() {
        let (cached, fake) = cached(FIVE, MANY);
        fake.answers(|_| Err(DOWN));
        assert_eq!(cached.awaited(&owner(), &Trace::default()).await.err(), Some(DOWN));
        fake.answers(|_| panic!("a bug"));
        let [first, second] = [(); 2].map(|()| cached.awaited(&owner(), &Trace::default()));
        assert!(matches!(first.await, Err(TokenError::Unavailable(_))));
        assert!(matches!(second.await, Err(TokenError::Unavailable(_))));
        assert_eq!(cached.waits.count(), 0);
    }

    /// What is kept is without the mark, so it goes, and what was looked up meanwhile as well.
    #[tokio::test]
    async fn the_mark_shows_from_when_it_is_set() {
        let (cached, fake) = cached(FIVE, MANY);
        let marked = move |call| Ok(AccessToken { again: Some(UnixTime::from_secs(DAWN + 3)), ..token(call) });
        assert_eq!(get(&cached, &owner()).await, is("token-1"));
        assert!(!cached.cached(&owner()).expect("kept").comes_again());
        close(&fake);
        let of = cached.clone();
        let marking = tokio::spawn(async move { of.expect_again(owner(), &Trace::default()).await });
        settle().await;
        assert!(cached.cached(&owner()).is_none(), "before it is over");
        let during = cached.look_up(&owner(), &Trace::default()).expect("a share");
        settle().await;
        fake.gate.add_permits(2);
        assert_eq!(marking.await.expect("no panic"), Ok(()));
        assert!(!during.await.expect("a token").comes_again());
        assert!(cached.cached(&owner()).is_none(), "it may have begun too early");
        fake.answers(marked);
        fake.gate.add_permits(1);
        assert_eq!(get(&cached, &owner()).await, is("token-3"));
        at(2999);
        assert!(cached.cached(&owner()).expect("kept").comes_again());
        at(3000);
        assert!(cached.cached(&owner()).is_none(), "it is kept no longer than the mark");
    }

    #[tokio::test]
    async fn what_no_header_may_have_is_not_sent() {
        for bad in ["", "a b", "a\r\nx: y", "a\n", "\0", "tökén", "a\u{7f}"] {
            let (cached, fake) = cached(FIVE, MANY);
            fake.answers(move |call| Ok(AccessToken { secret: Secret::new(bad), ..token(call) }));
            let refused = get(&cached, &owner()).await;
            assert!(matches!(&refused, Err(TokenError::Unavailable(cause)) if cause.contains("characters")), "{bad:?}");
            assert!(cached.cached(&owner()).is_none());
        }
        let good = "azAZ09-._~+/==|:%";
        let bearer = Bearer::new(AccessToken { secret: Secret::new(good), ..token(1) }).expect("a token");
        assert_eq!(bearer.edits.set, [("authorization", format!("Bearer {good}").into())]);
        assert_eq!((text(&bearer).as_str(), format!("{bearer:?}").as_str()), (good, "Bearer(…)"));
    }

    #[tokio::test]
    async fn it_never_grows_past_its_bound() {
        let (cached, _) = cached(FIVE, MANY);
        for route in 0..100 {
            let owner = TokenOwner { client_id: ClientId::new(route.to_string()), ..owner() };
            assert!(get(&cached, &owner).await.is_ok());
        }
        cached.tidy();
        assert!((1..=10).contains(&cached.known.kept.entry_count()));
        assert!(cached.known.lock().by_place.is_empty(), "and nothing is left of look-ups");
    }
}
