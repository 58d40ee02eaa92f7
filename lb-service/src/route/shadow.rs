//! Routes that no request can reach.

use super::index::{Index, Reversed, SoughtHost};
use super::{AnyOf, HostPattern, PathPattern, Route};

/// Returns the routes that no request can reach, each with the first earlier route that matches everything it matches:
/// `(unreachable, because of)`, as positions in `routes`.
///
/// A route that only several earlier ones together cover is not reported.
pub fn shadowed_by(routes: &[Route]) -> Vec<(usize, usize)> {
    let index = Index::new(routes);
    (0..routes.len()).filter_map(|late| Some((late, first_cover(routes, &index, late)?))).collect()
}

/// Returns the first route that matches everything that the route at `late` matches and that comes before it.
#[expect(clippy::indexing_slicing, reason = "the index has positions of these routes")]
fn first_cover(routes: &[Route], index: &Index, late: usize) -> Option<usize> {
    let route = &routes[late];
    // A route that covers all hosts and paths of this one also covers the first of them.
    let host = route.host.as_ref().and_then(|hosts| hosts.as_slice().first());
    let mut space = Reversed::new();
    let host = host.map_or(SoughtHost::Any, |host| SoughtHost::of_pattern(host, &mut space));
    let path = route.path.as_slice().first().and_then(PathPattern::sought);
    index.first(host, path, late, |early| routes[early].covers(route))
}

// === impl Route ===

impl Route {
    /// Returns whether this route matches every request that `later` matches.
    fn covers(&self, later: &Self) -> bool {
        self.listener.is_none_or(|listener| later.listener == Some(listener))
            && self.host.as_ref().is_none_or(|hosts| {
                later.host.as_ref().is_some_and(|others| hosts.cover(others, HostPattern::covers))
            })
            && self.path.cover(&later.path, PathPattern::covers)
            && self.covers_methods(later)
            && self.headers.iter().all(|line| later.headers.contains(line))
    }

    fn covers_methods(&self, later: &Self) -> bool {
        self.methods.is_empty()
            || (!later.methods.is_empty() && later.methods.iter().all(|method| self.methods.contains(method)))
    }
}

// === impl AnyOf ===

impl<T> AnyOf<T> {
    /// Returns whether each of `others` is covered by a single one of these patterns, where `covers` compares two
    /// patterns.
    ///
    /// Several patterns that only together cover another one do not count, so `true` is always correct.
    fn cover(&self, others: &Self, covers: impl Fn(&T, &T) -> bool) -> bool {
        others.as_slice().iter().all(|other| self.any(|own| covers(own, other)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{any_routes, exact, header, host, prefix, route};
    use super::*;
    use crate::listener::ListenerId;
    use http::{HeaderName, HeaderValue, Method};
    use proptest::prelude::{prop_assert_eq, proptest};

    #[test]
    fn a_route_is_shadowed_by_an_earlier_one_that_matches_all_it_matches() {
        let on = |listener| Route { listener: Some(ListenerId(listener)), ..route() };
        let at = |text| Route { host: Some(host(text).into()), ..route() };
        let at_any = |texts: &[&str]| Route { host: AnyOf::new(texts.iter().copied().map(host)), ..route() };
        let under = |path: PathPattern| Route { path: path.into(), ..route() };
        let under_any = |paths: Vec<PathPattern>| Route { path: AnyOf::new(paths).unwrap(), ..route() };
        let by = |methods: &[Method]| Route { methods: methods.to_vec(), ..route() };
        let with = |headers: &[(HeaderName, HeaderValue)]| Route { headers: headers.to_vec(), ..route() };
        for (earlier, later, shadowed) in [
            (route(), on(0), true),
            (on(0), on(0), true),
            (on(0), on(1), false),
            (on(0), route(), false),
            (at("*.a.com"), at("x.a.com"), true),
            (at("*.a.com"), at("*.x.a.com"), true),
            (at("*.a.com"), at("a.com"), false),
            (at("*.x.a.com"), at("*.a.com"), false),
            (at("A.com."), at("a.com"), true),
            (at("[::1]"), at("[::2]"), false),
            (under(prefix("/v1")), under(prefix("/v1/")), true),
            (under(prefix("/v1")), under(exact("/v1/x")), true),
            (under(prefix("/v1/")), under(prefix("/v1")), false),
            (under(prefix("/v1")), under(prefix("/v10")), false),
            (under(prefix("/")), route(), false),
            (under(exact("/v1")), under(prefix("/v1")), false),
            (at_any(&["a.com", "*.b.com"]), at("x.b.com"), true),
            (at_any(&["a.com", "*.b.com"]), at_any(&["x.b.com", "a.com", "y.b.com"]), true),
            (at_any(&["a.com", "b.com"]), at_any(&["a.com", "c.com"]), false),
            (at("a.com"), at_any(&["a.com", "b.com"]), false),
            (at_any(&["a.com", "b.com"]), route(), false),
            (under_any(vec![exact("/a"), prefix("/v1")]), under_any(vec![exact("/v1/x"), exact("/a")]), true),
            (under_any(vec![exact("/a"), prefix("/v1")]), under(prefix("/a")), false),
            (under(prefix("/v1")), under_any(vec![prefix("/v1"), prefix("/v2")]), false),
            (by(&[Method::GET, Method::HEAD]), by(&[Method::GET]), true),
            (by(&[Method::GET]), by(&[Method::GET, Method::HEAD]), false),
            (by(&[Method::GET]), route(), false),
            (with(&[header("x", "1")]), with(&[header("y", "1"), header("x", "1")]), true),
            (with(&[header("x", "1")]), with(&[header("x", "2")]), false),
            (with(&[header("x", "1")]), route(), false),
        ] {
            let expected = if shadowed { vec![(1, 0)] } else { vec![] };
            assert_eq!(shadowed_by(&[earlier.clone(), later.clone()]), expected, "{earlier:?} {later:?}");
        }
    }

    #[test]
    fn the_first_covering_route_is_reported() {
        assert_eq!(shadowed_by(&[route(), route(), route()]), [(1, 0), (2, 0)]);
    }

    proptest! {
        #[test]
        fn exactly_the_covered_routes_are_reported(routes in any_routes()) {
            let cover = |late: usize| routes[..late].iter().position(|early| early.covers(&routes[late]));
            let expected: Vec<_> =
                (0..routes.len()).filter_map(|late| Some((late, cover(late)?))).collect();
            prop_assert_eq!(shadowed_by(&routes), expected);
        }
    }
}
