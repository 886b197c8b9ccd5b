//! The checks of a request that every part makes.

use super::{refusal::Refusal, request::Request};
use crate::model::route::Route;

/// Whether a request came over https, and to the route's own host and port.
///
/// # Errors
/// The first of the two that it did not.
pub fn addressed(request: &Request<'_>, route: &Route) -> Result<(), Refusal> {
    if !request.is_https() {
        return Err(Refusal::HttpsRequired);
    }
    if !request.is_for(route.from.origin()) {
        return Err(Refusal::MisdirectedRequest);
    }
    Ok(())
}

/// Whether the request's method is one of these, which are written as `allow` has them.
///
/// # Errors
/// Where it is not.
pub fn method(request: &Request<'_>, methods: &'static str) -> Result<(), Refusal> {
    if !methods.split(',').any(|method| method.trim_start() == request.method()) {
        return Err(Refusal::MethodNotAllowed { allow: methods });
    }
    Ok(())
}
