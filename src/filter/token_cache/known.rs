//! The tokens that are kept, and the look-ups that may bring others.

use std::{
    collections::HashMap,
    hash::{Hash, Hasher},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::{Duration, Instant},
};

use foldhash::quality::RandomState;
use futures_util::future::{BoxFuture, Shared};
use moka::{Equivalent, sync::Cache};

use crate::{
    contract::tokens::{OwnerRef, TokenError, TokenOwner, TokenTag},
    filter::bearer::Bearer,
    model::{
        clock::{Clock, UnixTime},
        resource::ResourceIndicator,
        upstream::Upstream,
    },
};

/// The longest that a token is kept, whatever was asked for: nobody means more, and the cache takes no more than this.
const LONGEST: Duration = Duration::from_secs(86_400);

/// A look-up that is under way, or what it came to. It goes on when those who wait for it leave.
pub type LookUp = Shared<BoxFuture<'static, Result<Arc<Bearer>, TokenError>>>;

/// What is kept, and what is looked up. A token is put in and forgotten under the lock of the look-ups, so that none
/// comes in by a look-up that was forgotten before.
pub(super) struct Known {
    pub kept: Cache<Place, Arc<Kept>, RandomState>,
    pub under_way: Mutex<UnderWay>,
    pub longest: Duration,
    pub now: fn() -> Instant,
    pub clock: Clock,
}

/// The look-ups that are under way.
#[derive(Default)]
pub(super) struct UnderWay {
    /// How many began; each has its number.
    pub begun: u64,
    pub by_place: HashMap<Place, Begun>,
}

/// One of them.
pub(super) struct Begun {
    pub number: u64,
    pub at: Instant,
    pub owner: TokenOwner,
    pub look_up: LookUp,
    /// Whether what it brings may be kept: not where the upstream refused a token since it began.
    pub keeps: bool,
}

/// A token that is kept.
pub(super) struct Kept {
    beside: Beside,
    pub bearer: Arc<Bearer>,
    until: Instant,
    pub renew_at: Instant,
    pub is_renewing: AtomicBool,
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
pub(super) struct Place(pub TokenOwner);

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
    /// Keeps each token for `longest` at most, and `most` of them.
    pub fn new(longest: Duration, most: u64) -> Self {
        let longest = longest.min(LONGEST);
        Self {
            // Each entry has its own end, which is never later: this is for the memory of what nobody asks for.
            kept: Cache::builder().max_capacity(most).time_to_live(longest).build_with_hasher(RandomState::default()),
            under_way: Mutex::default(),
            longest,
            now: Instant::now,
            clock: UnixTime::now,
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, UnderWay> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is kept of an owner and not over, at this time.
    pub fn fresh(&self, owner: OwnerRef<'_>, now: Instant) -> Option<Arc<Kept>> {
        self.kept.get(&PlaceOf(owner)).filter(|kept| kept.beside.is_of(owner) && kept.until > now)
    }

    /// Takes in what a look-up came to, unless it was forgotten.
    pub fn end(&self, owner: TokenOwner, number: u64, result: &Result<Arc<Bearer>, TokenError>) {
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

    /// Forgets what is kept of an owner, and what is looked up.
    pub fn forget(&self, owner: &TokenOwner) {
        let mut under_way = self.lock();
        under_way.by_place.remove(&Place(owner.clone()));
        self.kept.invalidate(&PlaceOf(owner.into()));
    }

    /// Forgets a token that the upstream refused; a newer one stays. What is looked up now may bring it again, and is not
    /// kept.
    pub fn drop_refused(&self, owner: &TokenOwner, tag: TokenTag) {
        let mut under_way = self.lock();
        if let Some(begun) = under_way.by_place.get_mut(&Place(owner.clone())) {
            begun.keeps = false;
        }
        let place = PlaceOf(owner.into());
        if self.kept.get(&place).is_some_and(|kept| kept.bearer.tag == tag) {
            self.kept.invalidate(&place);
        }
    }

    /// Lets go of what is over: without it, a token that nobody asks for stays in memory past its end.
    pub fn tidy(&self) {
        self.kept.run_pending_tasks();
    }

    /// How many tokens are kept.
    pub fn count(&self) -> u64 {
        self.kept.entry_count()
    }
}
