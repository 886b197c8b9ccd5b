//! Tests of the cache against a service of tokens that does what it is told.

use super::{
    fake::{DAWN, DOWN, FIVE, LOST, MANY, at, cached, close, get, is, owner, settle, text, token},
    *,
};
use crate::model::{client::ClientId, clock::UnixTime, secret::Secret, upstream::Upstream, user::User};

#[tokio::test]
async fn a_token_is_kept_for_its_time() {
    let (cached, fake) = cached(FIVE, MANY);
    for (millis, token, calls) in [(0, "token-1", 1), (2499, "token-1", 1), (5001, "token-2", 2), (7000, "token-2", 2)]
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
        fake.answers(move |call| Ok(AccessToken { expires_at: Some(UnixTime::from_secs(DAWN) + life), ..token(call) }));
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
    let refused = async |call| cached.refused(owner(), Refused::unauthorized(token(call).tag), &Trace::default()).await;
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
    let user = |issuer: &str, subject: &str| User::Subject { issuer: issuer.to_owned(), subject: subject.to_owned() };
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
