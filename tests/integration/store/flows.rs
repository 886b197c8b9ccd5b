//! What a store promises of flows: each is taken once, ends in time, and is one of so many.

use std::sync::Arc;

use envoy_cimd::{
    model::clock::UnixTime,
    store::{
        backend::{Flow, FlowLimits, Taken},
        error::StoreError,
    },
};

use super::{Bed, LIMITS, NOW, OTHER_CONTEXT, first, flow, last, take, take_as};

pub async fn takes_a_flow_once(bed: &Bed) {
    let stores = bed.stores().await;
    let (here, there) = (first(&stores), last(&stores));
    here.add_flow(flow(1, 1), LIMITS, NOW).await.expect("added");
    here.add_flow(flow(2, 1), LIMITS, NOW).await.expect("added");
    assert_eq!(take_as(there, 1, OTHER_CONTEXT, NOW).await, Taken::WrongContext);
    assert_eq!(take(there, 1, NOW).await, Taken::Flow(b"sealed 1".into()), "it was not consumed");
    for store in [here, there] {
        assert_eq!(take(store, 1, NOW).await, Taken::Used(b"tombstone 1".into()));
        assert_eq!(
            take_as(store, 1, OTHER_CONTEXT, NOW).await,
            Taken::WrongContext,
            "that it was used is for its browser"
        );
        assert_eq!(take(store, 3, NOW).await, Taken::Unknown);
    }
    assert_eq!(take(here, 2, NOW).await, Taken::Flow(b"sealed 2".into()));
}

pub async fn forgets_what_expired(bed: &Bed) {
    let store = &bed.store().await;
    for number in 1..=3 {
        store.add_flow(Flow { expires_at: NOW + 10, ..flow(number, 1) }, LIMITS, NOW).await.expect("added");
    }
    store.add_flow(Flow { expires_at: NOW + 11, ..flow(4, 1) }, LIMITS, NOW).await.expect("added");
    assert!(matches!(take(store, 1, NOW + 9).await, Taken::Flow(_)));
    assert!(matches!(take(store, 1, NOW + 9).await, Taken::Used(_)));
    assert_eq!(take(store, 1, NOW + 10).await, Taken::Unknown, "the tombstone goes, too");
    assert_eq!(take(store, 2, NOW + 10).await, Taken::Unknown);
    assert_eq!(take_as(store, 3, OTHER_CONTEXT, NOW + 10).await, Taken::Unknown);
    assert!(matches!(take(store, 4, NOW + 10).await, Taken::Flow(_)));

    for expires_at in [UnixTime::default(), NOW - 1, NOW] {
        store.add_flow(Flow { expires_at, ..flow(5, 1) }, LIMITS, NOW).await.expect("nothing to keep");
        assert_eq!(take(store, 5, NOW).await, Taken::Unknown);
    }
}

pub async fn lets_a_users_oldest_go(bed: &Bed) {
    let stores = bed.stores().await;
    let (here, there) = (first(&stores), last(&stores));
    let limits = FlowLimits { of_user: 3, ..LIMITS };
    here.add_flow(flow(10, 2), limits, NOW).await.expect("another user's");
    // Of one second, so only the order tells.
    for number in [5, 1, 3] {
        here.add_flow(flow(number, 1), limits, NOW).await.expect("added");
    }
    there.add_flow(flow(4, 1), limits, NOW).await.expect("added");
    assert_eq!(take(here, 5, NOW).await, Taken::Unknown, "the first that came went");
    assert!(matches!(take(there, 1, NOW).await, Taken::Flow(_)));
    assert!(matches!(take(here, 1, NOW).await, Taken::Used(_)));
    here.add_flow(flow(6, 1), limits, NOW).await.expect("added");
    assert_eq!(take(here, 1, NOW).await, Taken::Unknown, "what was taken counts, and goes in its turn");

    here.add_flow(Flow { expires_at: NOW + 5, ..flow(7, 1) }, limits, NOW).await.expect("added");
    assert_eq!(take(here, 3, NOW).await, Taken::Unknown);
    here.add_flow(flow(8, 1), limits, NOW + 4).await.expect("added");
    assert_eq!(take(here, 7, NOW + 4).await, Taken::Unknown, "the first to expire goes first");
    here.add_flow(Flow { expires_at: NOW + 10, ..flow(9, 3) }, limits, NOW + 4).await.expect("added");
    for number in [11, 12, 13] {
        here.add_flow(flow(number, 3), limits, NOW + 10).await.expect("added");
    }
    for number in [4, 6, 8, 10, 11, 12, 13] {
        assert!(matches!(take(there, number, NOW + 10).await, Taken::Flow(_)), "{number}: what expired does not count");
    }

    // As where the limit was lowered; and none at all would be of no use.
    for number in [20, 21, 22] {
        here.add_flow(flow(number, 1), limits, NOW).await.expect("added");
    }
    here.add_flow(flow(23, 1), FlowLimits { of_user: 0, ..LIMITS }, NOW).await.expect("added");
    for number in [20, 21, 22] {
        assert_eq!(take(here, number, NOW).await, Taken::Unknown);
    }
    assert!(matches!(take(here, 23, NOW).await, Taken::Flow(_)));
}

pub async fn is_full_at_the_limit(bed: &Bed) {
    let stores = bed.stores().await;
    let (here, there) = (first(&stores), last(&stores));
    let limits = FlowLimits { of_user: 2, in_all: 4 };
    let full = |result| matches!(result, Err(StoreError::Full));
    for (number, user) in [(1, 1), (2, 1), (3, 2)] {
        here.add_flow(flow(number, user), limits, NOW).await.expect("added");
    }
    there.add_flow(Flow { expires_at: NOW + 5, ..flow(4, 3) }, limits, NOW).await.expect("added");
    assert!(full(here.add_flow(flow(5, 4), limits, NOW).await));
    assert_eq!(take(here, 5, NOW).await, Taken::Unknown);
    here.add_flow(flow(6, 1), limits, NOW).await.expect("in the place of one of this user's own");
    assert_eq!(take(here, 1, NOW).await, Taken::Unknown);

    assert!(matches!(take(here, 2, NOW).await, Taken::Flow(_)));
    assert!(full(there.add_flow(flow(5, 4), limits, NOW + 4).await), "what was taken counts until it expires");
    assert!(full(there.add_flow(flow(7, 5), limits, NOW + 4).await));
    there.add_flow(flow(7, 5), limits, NOW + 5).await.expect("in the place of what expired");
    assert!(full(there.add_flow(flow(8, 6), limits, NOW + 5).await));
    // Where a limit was lowered, one's own does not make room enough; then it does not go either.
    assert!(full(here.add_flow(flow(8, 5), FlowLimits { of_user: 1, in_all: 3 }, NOW + 5).await));
    for number in [3, 6, 7] {
        assert!(matches!(take(there, number, NOW + 5).await, Taken::Flow(_)), "{number} is still there");
    }
    assert!(full(here.add_flow(flow(8, 6), FlowLimits { of_user: 1, in_all: 0 }, NOW + 5).await));

    let limits = FlowLimits { of_user: 1, in_all: 2 };
    let later = NOW + 1000;
    let until = |seconds, flow| Flow { expires_at: later + seconds, ..flow };
    here.add_flow(until(1, flow(20, 20)), limits, later).await.expect("added");
    here.add_flow(until(9, flow(21, 21)), limits, later).await.expect("added");
    there.add_flow(until(9, flow(22, 22)), limits, later + 1).await.expect("in the place of what expired");
    assert!(full(there.add_flow(until(9, flow(23, 20)), limits, later + 1).await), "room is made only once");
}

/// Of more flows than one call removes.
pub async fn counts_nothing_that_expired(bed: &Bed) {
    let store = &bed.store().await;
    let limits = FlowLimits { of_user: 250, in_all: 250 };
    for number in 0..250 {
        store.add_flow(Flow { expires_at: NOW + 5, ..flow(number, number / 200) }, limits, NOW).await.expect("added");
    }
    for number in [249, 0, 248] {
        assert_eq!(take(store, number, NOW + 5).await, Taken::Unknown);
    }
    for number in 0..250 {
        store.add_flow(Flow { expires_at: NOW + 6, ..flow(number, number) }, limits, NOW + 5).await.expect("added");
    }
    let limits = FlowLimits { of_user: 1, in_all: 1 };
    store.add_flow(flow(250, 250), limits, NOW + 6).await.expect("added");
    assert!(matches!(store.add_flow(flow(251, 251), limits, NOW + 6).await, Err(StoreError::Full)));
}

pub async fn takes_no_id_twice(bed: &Bed) {
    let store = &bed.store().await;
    let again = Flow { context: OTHER_CONTEXT, sealed: b"other".into(), ..flow(1, 2) };
    store.add_flow(flow(1, 1), LIMITS, NOW).await.expect("added");
    assert!(matches!(store.add_flow(again.clone(), LIMITS, NOW).await, Err(StoreError::Failed(_))));
    assert_eq!(take(store, 1, NOW).await, Taken::Flow(b"sealed 1".into()));
    assert!(matches!(store.add_flow(again.clone(), LIMITS, NOW).await, Err(StoreError::Failed(_))));
    assert_eq!(take(store, 1, NOW).await, Taken::Used(b"tombstone 1".into()));
    let later = NOW + 600;
    store.add_flow(Flow { expires_at: later + 600, ..again }, LIMITS, later).await.expect("nothing is left of it");
    assert_eq!(take_as(store, 1, OTHER_CONTEXT, later).await, Taken::Flow(b"other".into()));
}

pub async fn gives_each_flow_to_one_of_many(bed: &Bed) {
    let stores = bed.stores().await;
    for number in 0..50 {
        first(&stores).add_flow(flow(number, number), LIMITS, NOW).await.expect("added");
    }
    let takers: Vec<_> = (0..200)
        .map(|taker: u8| {
            let store = Arc::clone(stores.get(usize::from(taker) % stores.len()).expect("a store"));
            // Four in a row for one flow, so that they meet.
            tokio::spawn(async move { (taker / 4, take(&store, taker / 4, NOW).await) })
        })
        .collect();
    let mut flows = [0; 50];
    for taker in takers {
        let (number, taken) = taker.await.expect("no panic");
        match taken {
            Taken::Flow(sealed) => {
                assert_eq!(sealed, flow(number, number).sealed);
                *flows.get_mut(usize::from(number)).expect("a flow") += 1;
            }
            taken => assert_eq!(taken, Taken::Used(flow(number, number).tombstone)),
        }
    }
    assert_eq!(flows, [1; 50]);
}

pub async fn keeps_limits_among_many(bed: &Bed) {
    let stores = bed.stores().await;
    let add_all = |flows: Vec<Flow>, limits| {
        let adding = flows.into_iter().zip(stores.iter().cycle().cloned());
        let adding: Vec<_> =
            adding.map(|(flow, store)| tokio::spawn(async move { store.add_flow(flow, limits, NOW).await })).collect();
        async move {
            let mut added = 0;
            for adding in adding {
                match adding.await.expect("no panic") {
                    Ok(()) => added += 1,
                    Err(error) => assert!(matches!(error, StoreError::Full), "{error}"),
                }
            }
            added
        }
    };
    let limits = FlowLimits { of_user: 20, in_all: 50 };
    assert_eq!(add_all((0..40).map(|number| flow(number, 1)).collect(), limits).await, 40);
    assert_eq!(add_all((100..180).map(|number| flow(number, number)).collect(), limits).await, 30);
    let mut left = 0;
    for number in (0..40).chain(100..180) {
        left += u8::from(matches!(take(first(&stores), number, NOW).await, Taken::Flow(_)));
    }
    assert_eq!(left, 50);
}
