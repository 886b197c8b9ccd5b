//! Tests of the waits against a service of tokens that does what it is told.

use std::sync::atomic::Ordering::Relaxed;

use super::*;
use crate::{
    filter::token_cache::fake::{DOWN, FIVE, LOST, MANY, cached, close, is, owner, settle, text, token},
    model::{client::ClientId, shares::ShareLimits},
};

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
    assert_eq!((fake.calls(), fake.waiting.load(Relaxed), cached.awaited.count()), (1, 0, 0));
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
    assert_eq!((fake.calls(), fake.waiting.load(Relaxed), cached.awaited.count()), (1, 0, 0));
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
    let begin = Instant::now();
    let first = tokio::spawn(cached.awaited(&owner(), &Trace::default()));
    sleep(Duration::from_secs(13)).await;
    let second = tokio::spawn(cached.awaited(&owner(), &Trace::default()));
    assert_eq!(first.await.expect("no panic").err(), Some(LOST));
    assert_eq!(begin.elapsed().as_secs(), 20);
    assert_eq!(fake.waiting.load(Relaxed), 1, "it goes on for the other");
    assert_eq!(second.await.expect("no panic").err(), Some(LOST));
    assert_eq!(begin.elapsed().as_secs(), 33);
    settle().await;
    assert_eq!((fake.calls(), fake.waiting.load(Relaxed), cached.awaited.count()), (4, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_service_that_does_not_wait_is_asked_once_a_second() {
    let (cached, fake) = cached(FIVE, MANY);
    fake.answers(|call| if call < 8 { Err(LOST) } else { Ok(token(call)) });
    let begin = Instant::now();
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
    assert_eq!(cached.awaited.count(), 0);
}
