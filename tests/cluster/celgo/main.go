// celgo evaluates expressions as Kubernetes does, with what its environment adds to cel-go, and with cel-go's bindings,
// encoders and math beside it. It reads JSON lines {"expression": …, "variables": {…}} and answers each with one line,
// {"value": …}, {"error": …} or {"refused": …} if it does not compile.
//
// What the checker refuses is evaluated without it: variables are dyn as often as not, and types count then as well.
// A value is written with its type: {"int": "1"}, {"list": […]}, {"map": [[key, value], …]} and so on.
package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"sort"
	"strconv"
	"strings"
	// The same time zones wherever it runs.
	_ "time/tzdata"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/common/types/traits"
	"github.com/google/cel-go/ext"
	"k8s.io/apimachinery/pkg/api/resource"
	apiservercel "k8s.io/apiserver/pkg/cel"
	"k8s.io/apiserver/pkg/cel/library"
)

type question struct {
	Expression string          `json:"expression"`
	Variables  json.RawMessage `json:"variables"`
}

func environment() (*cel.Env, error) {
	options := []cel.EnvOption{
		cel.DefaultUTCTimeZone(true),
		cel.CrossTypeNumericComparisons(true),
		cel.OptionalTypes(),
		library.URLs(),
		library.Regex(),
		library.Quantity(),
		library.IP(),
		library.CIDR(),
		library.Format(),
		library.SemverLib(library.SemverVersion(1)),
		library.Lists(library.ListsVersion(1)),
		ext.Strings(),
		ext.Sets(),
		ext.TwoVarComprehensions(),
		ext.Lists(ext.ListsVersion(3)),
		ext.Bindings(),
		ext.Encoders(),
		ext.Math(),
	}
	for _, name := range []string{"parent", "each", "index", "self", "old", "user"} {
		options = append(options, cel.Variable(name, cel.DynType))
	}
	return cel.NewEnv(options...)
}

// A value of JSON as an object holds it: whole numbers are int, and uint if they are too large for that.
func plain(value any) any {
	switch value := value.(type) {
	case json.Number:
		if number, err := strconv.ParseInt(string(value), 10, 64); err == nil {
			return number
		}
		if number, err := strconv.ParseUint(string(value), 10, 64); err == nil {
			return number
		}
		number, _ := value.Float64()
		return number
	case []any:
		for i := range value {
			value[i] = plain(value[i])
		}
		return value
	case map[string]any:
		for key := range value {
			value[key] = plain(value[key])
		}
		return value
	default:
		return value
	}
}

// A double in a text that says all its bits; all that are no number are the same.
func double(value float64) string {
	if math.IsNaN(value) {
		return "nan"
	}
	return strconv.FormatUint(math.Float64bits(value), 16)
}

// A quantity by what it amounts to: the suffix is a matter of writing.
func quantity(value *resource.Quantity) string {
	copied := value.DeepCopy()
	text := copied.AsDec().String()
	if strings.Contains(text, ".") {
		text = strings.TrimRight(strings.TrimRight(text, "0"), ".")
	}
	return text
}

func typed(value ref.Val) any {
	one := func(name string, value any) any { return map[string]any{name: value} }
	switch value := value.(type) {
	case types.Null:
		return nil
	case types.Bool:
		return bool(value)
	case types.Int:
		return one("int", strconv.FormatInt(int64(value), 10))
	case types.Uint:
		return one("uint", strconv.FormatUint(uint64(value), 10))
	case types.Double:
		return one("double", double(float64(value)))
	case types.String:
		return string(value)
	case types.Bytes:
		return one("bytes", base64.StdEncoding.EncodeToString(value))
	case types.Timestamp:
		return one("timestamp", fmt.Sprintf("%d.%09d", value.Unix(), value.Nanosecond()))
	case types.Duration:
		return one("duration", strconv.FormatInt(int64(value.Duration), 10))
	case *types.Optional:
		if !value.HasValue() {
			return one("optional", []any{})
		}
		return one("optional", []any{typed(value.GetValue())})
	case traits.Lister:
		items := []any{}
		for it := value.Iterator(); it.HasNext() == types.True; {
			items = append(items, typed(it.Next()))
		}
		return one("list", items)
	case traits.Mapper:
		entries := [][2]any{}
		for it := value.Iterator(); it.HasNext() == types.True; {
			key := it.Next()
			entries = append(entries, [2]any{typed(key), typed(value.Get(key))})
		}
		text := func(i int) string { text, _ := json.Marshal(entries[i][0]); return string(text) }
		sort.Slice(entries, func(i, j int) bool { return text(i) < text(j) })
		return one("map", entries)
	case apiservercel.Quantity:
		return one("quantity", quantity(value.Quantity))
	case *apiservercel.Quantity:
		return one("quantity", quantity(value.Quantity))
	case apiservercel.IP:
		return one("ip", value.Addr.String())
	case apiservercel.CIDR:
		return one("cidr", value.Prefix.String())
	case apiservercel.URL:
		return one("url", value.URL.String())
	case apiservercel.Semver:
		return one("semver", value.Version.String())
	case ref.Type:
		return one("type", value.TypeName())
	default:
		return one("other", value.Type().TypeName())
	}
}

func answer(env *cel.Env, asked question) (answer map[string]any) {
	defer func() {
		if wrong := recover(); wrong != nil {
			answer = map[string]any{"panic": fmt.Sprint(wrong)}
		}
	}()
	parsed, issues := env.Parse(asked.Expression)
	if issues.Err() != nil {
		return map[string]any{"refused": issues.Err().Error()}
	}
	variables := map[string]any{}
	decoder := json.NewDecoder(bytes.NewReader(asked.Variables))
	decoder.UseNumber()
	if err := decoder.Decode(&variables); err != nil {
		return map[string]any{"refused": "variables: " + err.Error()}
	}
	plain(variables)
	if checked, issues := env.Check(parsed); issues.Err() == nil {
		answer = evaluate(env, checked, variables)
		// Of what it knows no type of the checker takes the first overload that fits.
		if why, failed := answer["error"].(string); !failed || !strings.Contains(why, "no such overload") {
			return answer
		}
	}
	return evaluate(env, parsed, variables)
}

func evaluate(env *cel.Env, ast *cel.Ast, variables map[string]any) map[string]any {
	program, err := env.Program(ast)
	if err != nil {
		return map[string]any{"error": err.Error()}
	}
	value, _, err := program.Eval(variables)
	if err != nil {
		return map[string]any{"error": err.Error()}
	}
	if types.IsUnknownOrError(value) {
		return map[string]any{"error": fmt.Sprint(value)}
	}
	return map[string]any{"value": typed(value)}
}

func main() {
	env, err := environment()
	if err != nil {
		fmt.Fprintln(os.Stderr, "celgo:", err)
		os.Exit(1)
	}
	input := bufio.NewReaderSize(os.Stdin, 1<<20)
	output := bufio.NewWriter(os.Stdout)
	for {
		line, err := input.ReadBytes('\n')
		if len(line) > 0 {
			var asked question
			answered := map[string]any{}
			if wrong := json.Unmarshal(line, &asked); wrong != nil {
				answered["refused"] = "question: " + wrong.Error()
			} else {
				answered = answer(env, asked)
			}
			text, wrong := json.Marshal(answered)
			if wrong != nil {
				text, _ = json.Marshal(map[string]any{"panic": wrong.Error()})
			}
			output.Write(append(text, '\n'))
		}
		if err != nil {
			break
		}
		// One who asks a line at a time waits for the answer.
		if input.Buffered() == 0 {
			output.Flush()
		}
	}
	output.Flush()
}
