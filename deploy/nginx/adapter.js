// Which adapter a request is for: what nginx hashes to choose a replica.

function route(r) {
    r.variables.adapter = adapterOf(r.requestText);
    r.internalRedirect('@replicas');
}

// "base:name" and "base::name" are "name"; adapters of a list count too. What is no JSON has no
// adapter, and the replica says what is wrong with it.
function adapterOf(body) {
    try {
        var request = JSON.parse(body);
        var names = [String(request.model).split(':').pop()];
        if (Array.isArray(request.lora)) {
            names = names.concat(request.lora.map(function (one) {
                return String(one.name === undefined ? one.id : one.name);
            }));
        }
        return names.join('+');
    } catch (e) {
        return '';
    }
}

export default { route };
